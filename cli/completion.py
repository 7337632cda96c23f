"""`postmill completion`: completion of commands, flags and choices for bash, zsh and fish."""

import importlib
import sys
import typing
from typing import Any

from postmill.cli.help import common_flags, flag_name
from postmill.cli.tool import need, parse
from postmill.io.errors import ConfigError
from postmill.stages.options import bare, options, short_names
from postmill.stages.table import STAGES

USAGE = """
Print a completion script: eval "$(postmill completion bash)"

usage: postmill completion bash|zsh|fish
"""

_BASH = """_postmill() {
  local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD-1]}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then words="%(commands)s"; else
    case "${COMP_WORDS[1]} $prev" in
%(choices)s
    esac
    if [ -z "$words" ]; then case "${COMP_WORDS[1]}" in
%(flags)s
    esac; fi
  fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _postmill postmill
"""


def _stages() -> dict[str, dict[str, Any]]:
    """Stage -> flag -> choices (empty when any value goes)."""
    table: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        stage = importlib.import_module(f"postmill.stages.{name}.config").STAGE
        flags: dict[str, Any] = {}
        known = options(stage.config)
        for word, path in short_names(known).items():
            option = known[path]
            plain = bare(option.kind)
            words = typing.get_args(plain) if typing.get_origin(plain) is typing.Literal else ()
            flags[flag_name(word)] = list(option.choice.table) if option.choice else [str(value) for value in words]
        table[name] = (
            flags
            | {flag: [] for flag in common_flags(is_service=stage.is_service, shards=stage.shards)}
            | {p.flag: [] for p in stage.inputs.values() if p.flag}
        )
    return table


def _bash() -> str:
    from postmill.cli.main import TOOLS

    choices, flags = [], []
    for stage, table in _stages().items():
        flags.append(f'      {stage}) words="{" ".join(table)}";;')
        choices += [f'      "{stage} {flag}") words="{" ".join(values)}";;' for flag, values in table.items() if values]
    names = " ".join([*STAGES, *TOOLS])
    return _BASH % {"commands": names, "choices": "\n".join(choices), "flags": "\n".join(flags)}


def _fish() -> str:
    from postmill.cli.main import TOOLS

    commands = {**STAGES, **TOOLS}
    lines = [f"complete -c postmill -n __fish_use_subcommand -a {name} -d '{text}'" for name, text in commands.items()]
    for stage, table in _stages().items():
        for flag, values in table.items():
            long = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            extra = f" -xa '{' '.join(values)}'" if values else ""
            lines.append(f"complete -c postmill -n '__fish_seen_subcommand_from {stage}' {long}{extra}")
    return "\n".join(lines) + "\n"


def run(argv: list[str]) -> int:
    """Print the script for one shell."""
    args = parse(argv, USAGE)
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    shell = args.words[0]
    if shell == "bash":
        sys.stdout.write(_bash())
    elif shell == "zsh":
        sys.stdout.write("autoload -U +X bashcompinit && bashcompinit\n" + _bash())
    elif shell == "fish":
        sys.stdout.write(_fish())
    else:
        raise ConfigError(f"{shell}: expected bash, zsh or fish")
    return 0
