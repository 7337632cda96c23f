"""The text of `--help`, from the stage's declaration alone."""

import textwrap
from typing import Any

from postmill.cli.declaration import REQUIRED, Declaration

COMMON = {
    "--output": "where to put the artifact; `-` is stdout (-o)",
    "--dry-run": "print the resolved config, the inputs found and the output planned; do nothing",
    "--json": "print one object about the run at the end",
    "--quiet": "no progress (-q)",
    "--replace": "replace an output that other inputs or options have made; what is up to date stays",
    "--force": "make the output again, whatever is there (-f)",
    "--threads": "threads to use; never changes the result (default: all cores)",
    "--max-dropped": "fail if more than this share of rows is dropped, like 1% (default: 100%)",
    "--offline": "fetch nothing from a hub; use what was fetched before (HF_HUB_OFFLINE=1 does the same)",
    "--debug": "show a traceback with an error",
    "--help": "this text; --help all shows every option (-h)",
}
"""Flags that every stage has."""
SHARD = {
    "--shard": "encode part I of N, like 2/4, into a file beside the output; the same command without it takes the "
    "parts that are there, and makes the artifact of one machine"
}
"""The flag of stages whose work several processes may share."""
_OF_ARTIFACTS = ("--output", "--json", "--replace", "--force", "--max-dropped")


def common_flags(*, is_service: bool, shards: bool = False) -> dict[str, str]:
    """Flags that a stage has beside its own; a service makes no artifact."""
    return (SHARD if shards else {}) | {
        name: text for name, text in COMMON.items() if not is_service or name not in _OF_ARTIFACTS
    }


def flag_name(field: str) -> str:
    """`row_tokens` as `--row-tokens`; `for_`, which Python's own word forbids without its mark, as `--for`."""
    return "--" + field.rstrip("_").replace("_", "-")


def _entry(left: str, text: str) -> str:
    body = textwrap.fill(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return f"  {left}\n{body}\n" if text else f"  {left}\n"


def stage_help(stage: Declaration, *, everything: bool = True) -> str:
    """Sentence, example, inputs, options, common flags. Of a stage with many options, the ones that `first` names."""
    positional = [(name, port) for name, port in stage.ports.items() if not port.get("flag")]
    flagged = [(name, port) for name, port in stage.ports.items() if port.get("flag")]
    usage = ["postmill", stage.name]
    usage += [name.upper() + ("..." if port.get("many") else "") for name, port in positional]
    for name, port in flagged:
        words = f"{port['flag']} {name.upper()}"
        usage.append(words if port.get("required", True) else f"[{words}]")
    usage += [*([] if stage.is_service else ["-o OUTPUT"]), "[options]", "[@ recipe.toml]"]
    parts = [f"{stage.summary}\n\n", f"usage: {' '.join(usage)}\n"]
    if stage.example:
        parts.append("\nexample:\n" + textwrap.indent(textwrap.dedent(stage.example).strip(), "  ") + "\n")
    parts.append("\ninputs:\n")
    for name, port in [*positional, *flagged]:
        parts.append(_entry(f"{port.get('flag', '')} {name.upper()}".strip(), port["help"]))
    parts.append("\noptions:\n")
    lasts = [option.path.rpartition(".")[2] for option in stage.options]
    picked = set(stage.chosen.values())
    shown = [
        option
        for option in stage.options
        if everything or not stage.first or option.path in stage.first or option.path.partition(".")[0] in picked
    ]
    for option in shown:
        parts.append(_option(_short(option.path, lasts), option.kind, option.default, option.doc))
    hidden = len(stage.options) - len(shown)
    if hidden:
        parts.append(f"  and {hidden} more: postmill {stage.name} --help all\n")
    for path in stage.choices:
        name = flag_name(_short(path, lasts))
        parts.append(f"  options of another {name[2:]}: postmill {stage.name} {name} NAME --help all\n")
    parts.append("\ncommon:\n")
    parts += [
        f"  {name:<16}{text}\n" for name, text in common_flags(is_service=stage.is_service, shards=stage.shards).items()
    ]
    return "".join(parts)


def _short(path: str, lasts: list[str]) -> str:
    """The last part of an option's path, where no other option ends in it."""
    last = path.rpartition(".")[2]
    return last if lasts.count(last) == 1 else path


def _option(path: str, kind: str, default: Any, doc: str) -> str:
    flag = flag_name(path)
    left = f"{flag}, --no-{flag[2:]}" if kind == "bool" else f"{flag} {kind}"
    if default is REQUIRED:
        return _entry(left, f"{doc} (required)")
    shown = {True: "on", False: "off"}[default] if isinstance(default, bool) else default
    empty = shown is None or shown == "" or shown in ([], {}, ())
    return _entry(left, doc if empty else f"{doc} (default: {shown})")
