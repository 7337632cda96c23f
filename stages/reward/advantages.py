"""Advantages: a reward against those of the same prompt. Rewards that are missing stay missing; they are no zeros.

Letters: N rows. Groups are rows of one prompt. Sources: GRPO, <https://arxiv.org/abs/2402.03300>; Dr. GRPO,
<https://arxiv.org/abs/2503.20783>; RLOO, <https://arxiv.org/abs/2402.14740>; REINFORCE++, <https://arxiv.org/abs/2501.03262>;
GDPO and MaxRL as in ms-swift's `rl_core/advantage.py`; OPO, <https://arxiv.org/abs/2505.23585>.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_EPS = 1e-4
_EPS_GDPO = 1e-8

Values = NDArray[np.float64]


class Groups(NamedTuple):
    """Rows with a reward, by prompt. All arrays are [N] unless said otherwise."""

    group: NDArray[np.int64]
    """Number of the row's prompt, from 0."""
    reward: Values
    scores: Values
    """[N, functions], NaN where a function gave none."""
    weights: Values
    """[functions]"""
    num_tokens: Values

    def total(self, values: Values) -> Values:
        """Sum of `values` over each row's group."""
        sums: Values = np.bincount(self.group, values)[self.group].astype(np.float64)
        return sums

    def mean(self, values: Values) -> Values:
        """Mean of `values` over each row's group: exactly the value where all are equal, so that noise of rounding is
        not divided by a deviation of nearly zero."""
        lowest = np.full(int(self.group.max(initial=-1)) + 1, np.inf)
        np.minimum.at(lowest, self.group, values)
        low: Values = lowest[self.group]
        return low + self.total(values - low) / self.total(np.ones_like(values))

    def std(self, values: Values) -> Values:
        """Sample standard deviation (n - 1) of `values` in each row's group; 0 in a group of one."""
        count = self.total(np.ones_like(values))
        squares = self.total((values - self.mean(values)) ** 2)
        return np.sqrt(squares / np.maximum(count - 1, 1))


def _std(values: Values) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _grpo(g: Groups) -> Values:
    return (g.reward - g.mean(g.reward)) / (g.std(g.reward) + _EPS)


def _group_mean(g: Groups) -> Values:
    return g.reward - g.mean(g.reward)


def _batch(g: Groups) -> Values:
    return (g.reward - g.mean(g.reward)) / (_std(g.reward) + _EPS)


def _rloo(g: Groups) -> Values:
    count = g.total(np.ones_like(g.reward))
    return (g.reward - g.mean(g.reward)) * count / np.maximum(count - 1, 1)


def _reinforce_pp(g: Groups) -> Values:
    centred = g.reward - g.mean(g.reward)
    return centred / (_std(centred) + _EPS)


def _gdpo(g: Groups) -> Values:
    total = np.zeros_like(g.reward)
    for column, weight in zip(g.scores.T, g.weights, strict=True):
        there = ~np.isnan(column)
        part = Groups(g.group[there], column[there], g.scores[there], g.weights, g.num_tokens[there])
        total[there] += weight * (part.reward - part.mean(part.reward)) / (part.std(part.reward) + _EPS_GDPO)
    centred: Values = total - total.mean()
    return centred / (_std(total) + _EPS_GDPO)


def _max_rl(g: Groups) -> Values:
    mean = g.mean(g.reward)
    return np.divide(g.reward - mean, mean, out=np.zeros_like(mean), where=mean != 0)


def _opo(g: Groups) -> Values:
    length = np.maximum(g.num_tokens, 1)
    return g.reward - g.total(g.reward * length) / g.total(length)


ESTIMATORS: dict[str, Callable[[Groups], Values]] = {
    "grpo": _grpo,
    "group_mean": _group_mean,
    "batch": _batch,
    "rloo": _rloo,
    "reinforce_pp": _reinforce_pp,
    "gdpo": _gdpo,
    "max_rl": _max_rl,
    "opo": _opo,
    "none": lambda g: g.reward,
}
"""Name -> function from rows with rewards to their advantages."""


def group_kinds(group: NDArray[np.int64], reward: Values, eps: float) -> list[str]:
    """What each row's group is like: `mixed`, or all equal and above 0 (`best`) or not (`worst`), or `few`: fewer than
    two rewards. Equality is that of the rewards themselves, not of a computed deviation.

    reward: [N], NaN where a row has none. Rewards that differ by at most `eps` are equal.
    """
    there = ~np.isnan(reward)
    size = int(group.max()) + 1 if len(group) else 0
    count = np.bincount(group[there], minlength=size)
    highest, lowest = np.full(size, -np.inf), np.full(size, np.inf)
    np.maximum.at(highest, group[there], reward[there])
    np.minimum.at(lowest, group[there], reward[there])
    equal = np.where(highest > 0, "best", "worst")
    kinds = np.where(count < 2, "few", np.where(highest - lowest > eps, "mixed", equal))
    return [str(kind) for kind in kinds[group]]
