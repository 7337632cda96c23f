"""Two evals of the same items, item by item: is the difference more than chance?

What two models share (hard items, easy ones) cancels in the difference of each item. Sources: Miller, Adding Error Bars
to Evals, <https://arxiv.org/abs/2411.00640>; Efron, Better Bootstrap Confidence Intervals (1987).
"""

import math
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_DRAWS = 10_000
_CHUNK = 2**22
"""Numbers drawn at a time."""
_NORMAL = NormalDist()

Floats = NDArray[np.float64]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One number of two evals."""

    metric: str
    num_items: int
    before: float
    after: float
    difference: float
    stderr: float | None
    """Of the difference; of clusters of items where they have groups."""
    low: float
    high: float
    """95% of bootstrap draws, bias-corrected and accelerated."""
    p: float
    """Of no difference: exact for right and wrong (McNemar), else from the standard error."""
    p_holm: float = 1.0
    """The same, for all numbers together."""
    detectable: float | None
    """The smallest true difference that would be found with a power of 80%, at 5%."""
    gained: int
    lost: int


def compare(metric: str, before: Floats, after: Floats, clusters: list[str], key: int) -> Difference:
    """before, after: of the same items, in the same order. key: decides the bootstrap's draws."""
    change = after - before
    names = sorted(set(clusters))
    at = {name: number for number, name in enumerate(names)}
    cluster_of = np.array([at[name] for name in clusters]) if len(names) > 1 else np.arange(len(change))
    stderr = _stderr(change, cluster_of)
    low, high = _interval(change, cluster_of, key)
    is_verdict = bool(np.isin(np.concatenate([before, after]), (0.0, 1.0)).all())
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    p = mcnemar(gained, lost) if is_verdict else _from_stderr(float(change.mean()), stderr)
    reach = _NORMAL.inv_cdf(0.975) + _NORMAL.inv_cdf(0.8)
    return Difference(
        metric=metric,
        num_items=len(change),
        before=float(before.mean()),
        after=float(after.mean()),
        difference=float(change.mean()),
        stderr=stderr,
        low=low,
        high=high,
        p=p,
        detectable=None if stderr is None else reach * stderr,
        gained=gained,
        lost=lost,
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided, exact: how likely so uneven a split of the items that changed is by chance."""
    count, fewer = gained + lost, min(gained, lost)
    if not count:
        return 1.0
    ways: int = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, float(Fraction(2 * ways, 1 << count)))


def holm(differences: list[Difference]) -> list[Difference]:
    """With p-values that hold for all numbers together."""
    order = sorted(range(len(differences)), key=lambda at: differences[at].p)
    adjusted: dict[int, float] = {}
    most = 0.0
    for rank, at in enumerate(order):
        most = max(most, min(1.0, (len(differences) - rank) * differences[at].p))
        adjusted[at] = most
    return [msgspec.structs.replace(each, p_holm=adjusted[at]) for at, each in enumerate(differences)]


def _sums(values: Floats, cluster_of: NDArray[Any]) -> Floats:
    return np.bincount(cluster_of, weights=values).astype(np.float64)


def _stderr(change: Floats, cluster_of: NDArray[Any]) -> float | None:
    """Of the mean, with items of a cluster taken to depend on each other; None for a single cluster."""
    count = int(cluster_of.max()) + 1
    if count < 2:
        return None
    sums = _sums(change - change.mean(), cluster_of)
    return float(math.sqrt(float((sums**2).sum())) / len(change) * math.sqrt(count / (count - 1)))


def _from_stderr(mean: float, stderr: float | None) -> float:
    if not stderr:
        return 1.0 if mean == 0 else 0.0
    return math.erfc(abs(mean / stderr) / math.sqrt(2))


def _interval(change: Floats, cluster_of: NDArray[Any], key: int) -> tuple[float, float]:
    sums, sizes = _sums(change, cluster_of), _sums(np.ones_like(change), cluster_of)
    count, mean = len(sums), float(change.mean())
    if count < 2 or not (change != change[0]).any():
        return mean, mean
    random = np.random.Generator(np.random.Philox(key=key))
    drawn = []
    rows = max(1, _CHUNK // count)
    for start in range(0, _DRAWS, rows):
        picked = random.integers(0, count, (min(rows, _DRAWS - start), count))
        drawn.append(sums[picked].sum(1) / sizes[picked].sum(1))
    means = np.sort(np.concatenate(drawn))
    below = (float((means < mean).sum()) + 0.5 * float((means == mean).sum())) / _DRAWS
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / _DRAWS), 1 - 0.5 / _DRAWS))
    without = (sums.sum() - sums) / (sizes.sum() - sizes)
    away = without.mean() - without
    spread = float((away**2).sum())
    bend = float((away**3).sum()) / (6 * spread**1.5) if spread else 0.0

    def quantile(share: float) -> float:
        moved = bias + _NORMAL.inv_cdf(share)
        place = _NORMAL.cdf(bias + moved / (1 - bend * moved))
        return float(means[min(int(place * _DRAWS), _DRAWS - 1)])

    return quantile(0.025), quantile(0.975)
