"""Measures between 0 and 1 for answers that can be nearly right: boxes, readings, transcripts."""

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
Box = tuple[float, float, float, float]


def read_box(text: str) -> Box | None:
    """The first four numbers of a text, as two corners; None where there are fewer, or they enclose nothing."""
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    if len(numbers) < 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        return None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def overlap(one: Box, other: Box) -> float:
    """Area of what two boxes share, over the area of both (intersection over union)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (area - shared)


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """How many insertions, deletions and replacements make one of the other. Source: Levenshtein, 1966."""
    row = list(range(len(other) + 1))
    for index, item in enumerate(one, 1):
        before, row[0] = row[0], index
        for place, wanted in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (item != wanted))
    return row[-1]


def likeness(output: str, answer: str) -> float:
    """1 less the distance of the letters over the longer length; 0 where less than half is alike.

    The mean over questions is ANLS. Source: <https://arxiv.org/abs/1905.13648>, section 4.
    """
    found = 1 - distance(output, answer) / max(len(output), len(answer), 1)
    return found if found >= 0.5 else 0.0


def words_right(output: Sequence[str], answer: Sequence[str]) -> float:
    """1 less the word error rate (distance over the answer's length), not below 0."""
    return max(0.0, 1 - distance(output, answer) / max(len(answer), 1))
