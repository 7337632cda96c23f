"""What a reward function is given, and what it may answer."""

from typing import Any

import msgspec

READY = "ready"
"""Reason of the answer that opens a task: its function is loaded, and the first row's time begins."""
NOT_LOADED = "not_loaded"
"""Reason of the answer in its place: the function could not be loaded."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One sample of a prompt. A reward function takes it and returns a number, or None where it has nothing to say."""

    output: str
    """The sampled answer, as text, without its closing token."""
    messages: list[dict[str, Any]]
    """The conversation that was answered."""
    transcript: list[dict[str, Any]]
    """Messages after the prompt: answers, tool calls and tool results, in order; `reward` in an answer is what the
    environment gave for it."""
    finish: str
    """Why sampling ended: stop, length, env_done, max_turns, limit, abort."""
    env_reward: float | None = None
    """Sum of what the environment gave; None if it gave nothing."""
    num_tokens: int
    """How many tokens were sampled."""
    sample: int
    """Which of the prompt's samples this is, from 0."""
    columns: dict[str, Any]
    """The other columns of the prompt's row: solution, answer, metadata."""
    seed: int
    """A seed of the row's own."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Rows for one function, as a worker gets them. `options` are the settings of built-in functions."""

    function: str
    """A built-in name, or `/path/file.py:name`."""
    options: dict[str, Any]
    rows: list[Row]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's answer for one row: a score, or none with the reason."""

    score: float | None = None
    reason: str = ""
    """Why there is no score: raised, not_a_number, wrong_type or memory; the pool adds timeout and crashed:SIGNAL."""
    detail: str = ""
