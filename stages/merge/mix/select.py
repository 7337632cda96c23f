"""Which elements of a change are kept: the largest, all but outliers, or some at random. Exact, in bounded memory."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from postmill.stages.merge.edits import F32, Array
from postmill.stages.merge.mix.group import Block, Group

Keep = Callable[[int, F32], Array]
"""First element and changes of a block -> True where a change is kept."""


def everything(start: int, delta: F32) -> Array:
    """Keeps all."""
    return np.ones(len(delta), bool)


def _bits(values: F32) -> Array:
    """Magnitudes as integers of the same order."""
    return np.abs(values).view(np.uint32)


def largest(group: Group, part: int, count: int) -> Keep:
    """Keeps the `count` largest changes of a model by magnitude; of equal ones, the first.

    The smallest of them is found by two histograms of 16 bits each, not by sorting.
    """
    if count >= group.size:
        return everything
    if count <= 0:
        return lambda start, delta: np.zeros(len(delta), bool)
    high = group.total(lambda block: np.bincount(_bits(block.delta(part)) >> 16, minlength=2**16), only=part)
    top, left = _find(high, count)

    def low_bits(block: Block) -> Array:
        bits = _bits(block.delta(part))
        return np.bincount(bits[bits >> 16 == top] & 0xFFFF, minlength=2**16)

    low = group.total(low_bits, only=part)
    bottom, quota = _find(low, left)
    limit = np.uint32(top << 16 | bottom)
    if quota == low[bottom]:
        return lambda start, delta: _bits(delta) >= limit
    equals = group.each(lambda block: (block.start, int((_bits(block.delta(part)) == limit).sum())), only=part)
    before: dict[int, int] = {}
    seen = 0
    for start, number in equals:
        before[start] = seen
        seen += number

    def keep(start: int, delta: F32) -> Array:
        bits = _bits(delta)
        equal = bits == limit
        return np.asarray((bits > limit) | (equal & (before[start] + np.cumsum(equal) <= quota)))

    return keep


def _find(histogram: Array, count: int) -> tuple[int, int]:
    """The bin that holds the count-th largest, and how many of that bin are among the count largest."""
    from_top = np.cumsum(histogram[::-1])
    place = int(np.searchsorted(from_top, count))
    above = int(from_top[place - 1]) if place else 0
    return len(histogram) - 1 - place, count - above


def without_outliers(group: Group, part: int, density: float, gamma: float) -> Keep:
    """Keeps a share `density`, after the largest share `gamma` is left out."""
    if density >= 1:
        return everything
    kept, top = int(density * group.size), int(gamma * group.size)
    bottom = max(0, group.size - kept - top)
    upper = largest(group, part, group.size - bottom)
    outliers = largest(group, part, group.size - bottom - kept)
    return lambda start, delta: upper(start, delta) & ~outliers(start, delta)


def random(group: Group, part: int, density: float, seed: int) -> Keep:
    """Keeps each element with probability `density`: a function of seed, tensor, model and place alone."""
    if density >= 1:
        return everything
    draw = _uniform(group.target, part, seed)
    return lambda start, delta: draw(start, len(delta)) < density


def random_by_rank(group: Group, part: int, density: float, epsilon: float, seed: int) -> Keep:
    """Keeps with a probability that rises over the ranks of a row's magnitudes, from density - epsilon to + epsilon."""
    if density >= 1:
        return everything
    group.by_rows()
    draw = _uniform(group.target, part, seed)

    def keep(start: int, delta: F32) -> Array:
        rows = _bits(delta).reshape(-1, group.row)
        order = np.argsort(rows, axis=1, kind="stable")
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(group.row)[None, :], axis=1)
        share = ranks / max(1, group.row - 1)
        return draw(start, len(delta)) < (density - epsilon + share * 2 * epsilon).reshape(-1)

    return keep


def _uniform(target: str, part: int, seed: int) -> Callable[[int, int], Array]:
    """Numbers in [0, 1) for `count` elements from `start` on, by Philox at the place of the element."""
    digest = hashlib.blake2b(f"{seed}\0{part}\0{target}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, np.uint64)

    def draw(start: int, count: int) -> Array:
        skip = start % 4  # one step of the counter gives four numbers
        words: Any = np.random.Philox(key=key, counter=start // 4).random_raw(skip + count)
        return np.asarray((words[skip:] >> np.uint64(11)) * 2.0**-53)

    return draw
