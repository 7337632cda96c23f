"""What an option of another tool becomes: the table that `recipe import` and the pages docs/coming-from-*.md share."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

Convert = Callable[[Any, Mapping[str, Any]], Any]
"""From a value and the whole config to our value; None leaves our default."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """Options of another tool that become one of ours, or that need nothing, or that have no counterpart."""

    theirs: tuple[str, ...]
    ours: str = ""
    """`section.option`, or `model`, `data`, `output`; empty if nothing of the recipe says it."""
    note: str = ""
    """What differs, or why there is nothing to carry over."""
    is_missing: bool = False
    """Whether the note tells of something that is not there."""
    values: Mapping[str, Any] = {}
    """Their words for values -> ours; None leaves our default. Words that are not here are passed on."""
    convert: Convert | None = None
    drop: tuple[Any, ...] = ()
    """Values that say nothing: our default stays."""


def carry(theirs: str, ours: str, note: str = "", **rest: Any) -> Rule:
    """Options that become `ours`."""
    return Rule(theirs=tuple(theirs.split()), ours=ours, note=note, **rest)


def needless(theirs: str, note: str) -> Rule:
    """Options that say what is so in any case, or how a program works inside."""
    return Rule(theirs=tuple(theirs.split()), note=note)


def missing(theirs: str, note: str, off: tuple[Any, ...] = ()) -> Rule:
    """Options of something that is not there. off: values that ask for nothing."""
    return Rule(theirs=tuple(theirs.split()), note=note, is_missing=True, drop=off)


def number(value: Any) -> float | None:
    """A number out of what a YAML file or a flag says."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def is_true(value: Any) -> bool:
    """Whether a YAML value or a flag's text says yes."""
    return value is True or str(value).lower() in ("true", "1", "yes", "on", "")


def whole(value: Any, _: Mapping[str, Any]) -> int | None:
    """A count; 0 and below say nothing."""
    found = number(value)
    return int(found) if found and found > 0 else None


def several(value: Any, config: Mapping[str, Any]) -> int | None:
    """A size of a mesh; one process is no mesh."""
    found = whole(value, config)
    return found if found and found > 1 else None


def yes(ours: Any) -> Convert:
    """`ours` where a switch is on."""
    return lambda value, _: ours if is_true(value) else None


def texts(value: Any, _: Mapping[str, Any]) -> list[str] | None:
    """Names in a list, or divided by commas or blanks."""
    items = value if isinstance(value, list) else str(value).replace(",", " ").split()
    return [str(item) for item in items] or None


def frozen_parts(tuner: str, **parts: str) -> Convert:
    """Parts of a model with towers that a full fine-tuning leaves as they are: their switch -> our word.

    tuner: the option that says whether all weights are trained; adapters are on the decoder alone in any case.
    """

    def convert(_: Any, config: Mapping[str, Any]) -> list[str] | None:
        if config.get(tuner) != "full":
            return None
        return [word for switch, word in parts.items() if switch in config and is_true(config[switch])] or None

    return convert


def rules_by_name(rules: list[Rule]) -> dict[str, Rule]:
    """Their option -> the first rule that names it."""
    found: dict[str, Rule] = {}
    for rule in rules:
        for name in rule.theirs:
            found.setdefault(name, rule)
    return found
