"""A harness: a program that asks a server by its own rules, and leaves a log of each sample that we read.

Each runs in its own environment, since its pins and ours would not fit together; only a URL and files are shared.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from postmill.stages.eval.config import Eval


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a harness is told."""

    cfg: Eval
    tasks: list[str]
    url: str
    """The server, before /v1."""
    model: str
    """The model's name there."""
    key: str
    """What the server asks for; some word where it asks for nothing, since clients want one."""
    folder: Path
    """Where the harness writes. It outlives a run that is stopped."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One sample as its log tells it."""

    task: str
    item_id: str
    prompt: str
    """A conversation, or a text, as JSON."""
    output: str | None = None
    finish: str | None = None
    error: str | None = None
    expected: list[str] = []
    scores: dict[str, float] = {}
    said: str = ""
    """What the harness took out of the answer."""


class Harness(msgspec.Struct, frozen=True, kw_only=True):
    """A harness that is known here."""

    package: str
    """What pip installs."""
    command: Callable[[Job], list[str]]
    """What follows the Python of its environment."""
    env: Callable[[Job], dict[str, str]]
    """Variables beside the usual ones; keys go here, where a list of processes does not show them."""
    read: Callable[[Job], list[Sample]]
    """The samples of its log, in order. Raises ValueError, KeyError, TypeError for a log of another form."""


def number(value: Any) -> float | None:
    """A score as a number: verdicts are 1 and 0; Inspect writes C, P, I and N."""
    if isinstance(value, bool | int | float):
        return float(value)
    return {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}.get(value) if isinstance(value, str) else None


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def texts(value: Any) -> list[str]:
    """Something that is expected, as texts."""
    values = value if isinstance(value, list) else [value]
    return [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in values if one is not None]


def conversation(messages: list[dict[str, Any]]) -> str:
    """Messages as JSON, of their roles and contents alone: ids and times differ from run to run."""
    said = [{"role": each.get("role"), "content": plain(each.get("content"))} for each in messages]
    return json.dumps(said, ensure_ascii=False, separators=(",", ":"))


def plain(content: Any) -> Any:
    """A message's content; a list of parts that are all texts is their text."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(part.get("text", "") for part in content)
    return content
