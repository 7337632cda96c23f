"""From log-probs or a text to a task's numbers, one for each item and metric, as lm-eval counts."""

import math
import re
from typing import Any

import msgspec

from postmill.stages.eval.tasks.ifeval import mark_rules
from postmill.stages.eval.tasks.mark import Mark
from postmill.stages.eval.tasks.overlap import mark_overlap
from postmill.stages.eval.tasks.prompts import Item
from postmill.stages.eval.tasks.task import Extract, Task

INVALID = "[invalid]"


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What the model thinks of one choice."""

    logp: float
    """Sum over its tokens."""
    num_tokens: int
    is_greedy: bool
    """Whether each of its tokens was the likeliest."""


def mark_choices(task: Task, item: Item, choices: list[Chosen]) -> list[Mark]:
    """acc: the likeliest choice is right, of equal ones the first. acc_norm: the same by characters of its text. mc2:
    the share of probability on true choices."""
    marks = []
    for metric in task.metrics:
        if metric == "mc2":
            top = max(choice.logp for choice in choices)
            shares = [math.exp(choice.logp - top) for choice in choices]
            true = sum(share for share, label in zip(shares, item.labels, strict=True) if label == 1)
            marks.append(Mark(metric=metric, value=true / sum(shares), said=""))
            continue
        sizes = [len(text) if metric == "acc_norm" else 1 for text in item.choices]
        best = max(range(len(choices)), key=lambda at: (choices[at].logp / sizes[at], -at))
        marks.append(Mark(metric=metric, value=float(best == item.target), said=item.choices[best]))
    return marks


def mark_text(task: Task, item: Item, output: str) -> list[Mark]:
    """Every number of one answer but `pass`, which takes a program's run."""
    marks = _matches(task, item, output) if "exact_match" in task.metrics else []
    if "ifeval" in task.metrics:
        marks += mark_rules(item, output)
    return marks + mark_overlap(task.metrics, output, str(item.target))


def _matches(task: Task, item: Item, output: str) -> list[Mark]:
    """exact_match for each way to extract."""
    marks = []
    for rule in task.extract or [Extract(name="", pattern=r"(?s)\A.*\Z")]:
        said = extracted(rule, output)
        is_equal = _plain(task, said) == _plain(task, str(item.target))
        name = f"exact_match,{rule.name}" if rule.name else "exact_match"
        marks.append(Mark(metric=name, value=float(is_equal), said=said))
    return marks


def extracted(rule: Extract, output: str) -> str:
    """The match that counts; of several groups the first that matched."""
    matches: list[Any] = re.findall(rule.pattern, output)
    if not matches:
        return INVALID
    match = matches[rule.pick]
    if isinstance(match, tuple):
        match = next((group for group in match if group), INVALID)
    return str(match).strip()


def _plain(task: Task, text: str) -> str:
    for pattern in task.equal.ignore:
        text = re.sub(pattern, "", text)
    return text.lower() if task.equal.ignore_case else text


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, and its standard error from the sample's deviation."""
    count = len(values)
    if not count:
        return {"value": None, "stderr": None, "num_items": 0}
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values)
    stderr = math.sqrt(spread / (count - 1) / count) if count > 1 else None
    return {"value": mean, "stderr": stderr, "num_items": count}
