"""What a config of another tool says: which tool it is of, and its options with the lines they stand in."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.coming_from import axolotl, deepspeed, grpo, llama_factory, ms_swift, trl
from postmill.cli.coming_from.rule import Rule, rules_by_name
from postmill.cli.flags import line_of, parse_recipe
from postmill.io.errors import ConfigError

TOOLS: dict[str, Any] = {
    "ms-swift": ms_swift,
    "llama-factory": llama_factory,
    "axolotl": axolotl,
    "trl": trl,
    "deepspeed": deepspeed,
}
"""Tool -> its table and its `task`."""
_REST = r"((?:[^\n]*\\\n)*[^\n]*)"
_COMMANDS = {
    "ms-swift": re.compile(r"(?:^|\s)(?:swift|megatron)\s+([a-z]+)\b" + _REST, re.M),
    "trl": re.compile(
        r"(?:^|\s)(?:trl\s+|\S*scripts/)(sft|dpo|kto|grpo|reward|cpo|orpo|prm)\w*(?:\.py)?(?=\s)" + _REST, re.M
    ),
}
"""Tool -> its commands in a shell script: a verb, and flags that may go on behind a backslash."""
_SIGNS = {
    "axolotl": {"base_model", "sequence_len", "micro_batch_size"},
    "llama-factory": {"finetuning_type", "cutoff_len", "template", "stage", "train_dataset", "dist_config"},
    "ms-swift": {"tuner_type", "train_type", "rlhf_type", "split_dataset_ratio", "torch_dtype"},
    "trl": {"dataset_name", "use_peft", "assistant_only_loss", "num_generations"},
    "deepspeed": {
        "zero_optimization",
        "train_micro_batch_size_per_gpu",
        "train_batch_size",
        "zero_allow_untested_optimizer",
    },
}
"""Options that tell a tool."""


class Config(msgspec.Struct, frozen=True):
    """A config of another tool."""

    tool: str
    options: dict[str, Any]
    places: dict[str, str]
    """Option -> `FILE:LINE`."""


def read_config(path: Path, tool: str = "") -> list[Config]:
    """Every run that a YAML, TOML or JSON file, or a shell script, describes. Raises ConfigError (2)."""
    if path.suffix in (".sh", ".bash", ".txt"):
        return _commands(path)
    options = parse_recipe(path)
    if not options:
        raise ConfigError(f"{path}: no options in it; expected a mapping of options to values")
    tool = tool or _tool(path, options)
    if tool == "deepspeed":
        options = deepspeed.flat(options, rules_of(tool))
    places = {key: f"{path}{line_of(path, key.rpartition('.')[2])}" for key in options}
    return [Config(tool, options, places)]


def _tool(path: Path, options: Mapping[str, Any]) -> str:
    scores = {tool: len(signs & options.keys()) for tool, signs in _SIGNS.items()}
    best = max(scores, key=lambda tool: scores[tool])
    if not scores[best]:
        raise ConfigError(f"{path}: cannot tell whose config this is; pass --of {'|'.join(TOOLS)}")
    return best


def _commands(path: Path) -> list[Config]:
    """Commands of ms-swift and TRL in a shell script."""
    commands = commands_in(path.read_text(encoding="utf-8"), str(path))
    if not commands:
        raise ConfigError(f"{path}: no command of ms-swift or TRL in it, as swift sft --model ...")
    return commands


def commands_in(text: str, name: str) -> list[Config]:
    """Commands in a text, with the lines of their flags in the file `name`."""
    found = [(match.start(), tool, match) for tool, form in _COMMANDS.items() for match in form.finditer(text)]
    commands = []
    for _, tool, match in sorted(found, key=lambda item: item[0]):
        first = text.count("\n", 0, match.start(2)) + 1
        options: dict[str, Any] = {"": match[1]}
        places = {"": f"{name}:{first}"}
        for number, line in enumerate(match[2].split("\n"), first):
            _words(line.rstrip("\\ "), options, places, f"{name}:{number}")
        commands.append(Config(tool, options, places))
    return commands


def _words(line: str, options: dict[str, Any], places: dict[str, str], place: str) -> None:
    """Flags of one line of a command, with their values."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from error
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name], places[name] = value, place
        elif name:
            before = options[name]
            options[name] = word if before == "" else [*before, word] if isinstance(before, list) else [before, word]


def rules_of(tool: str, task: str = "") -> dict[str, Rule]:
    """Their option -> what it becomes; a task's own word goes before a tool's, and that before what several share."""
    module = TOOLS[tool]
    before = grpo.RULES if task == "grpo" else getattr(module, "OF_TASKS", {}).get(task, [])
    return rules_by_name([*before, *module.RULES])
