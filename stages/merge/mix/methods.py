"""What each way of mixing does with a tensor. Formulas and sources stand with the options (`options.py`).

A rule takes what it needs of the whole tensor (norms, the k-th largest change) and returns how a block is mixed. All
sums over models are float32 in the models' order, sums over a tensor float64; the result is rounded once.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.merge.edits import F32, Array
from postmill.stages.merge.mix.group import Block, Group, Mix
from postmill.stages.merge.mix.options import (
    Breadcrumbs,
    BreadcrumbsTies,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    Ema,
    Linear,
    ModelStock,
    Passthrough,
    Slerp,
    TaskArithmetic,
    Ties,
)
from postmill.stages.merge.mix.select import Keep, everything, largest, random, random_by_rank, without_outliers
from postmill.stages.merge.mix.settings import Values

Rule = Callable[[Group, Any, Values], Mix]
"""Group, the method's options, the numbers for this tensor -> how a block is mixed."""


def linear(group: Group, options: Any, values: Values) -> Mix:
    """`sum w_i W_i / sum w_i`, or the sum alone."""
    return _weighted(values["weight"], options.normalize)


def _weighted(weights: list[float], normalize: bool) -> Mix:
    total = np.float32(sum(np.float32(weight) for weight in weights))

    def mix(block: Block) -> F32:
        mixed = np.zeros_like(block.parts[0])
        for weight, part in zip(weights, block.parts, strict=True):
            mixed += part * np.float32(weight)
        if normalize:
            mixed /= total
        return mixed

    return mix


def ema(group: Group, options: Any, values: Values) -> Mix:
    """Weights `(1 - beta) beta^k`, k counted back from the last model, divided by their sum."""
    count = len(group.parts)
    return _weighted([(1 - options.beta) * options.beta ** (count - 1 - n) for n in range(count)], True)


def slerp(group: Group, options: Any, values: Values) -> Mix:
    """`sin((1 - t) a) / sin a * W_0 + sin(t a) / sin a * W_1`, a the angle between them; a line where they are nearly
    parallel (|cos a| > 0.9995)."""
    t = values["t"][0]

    def products(block: Block) -> Array:
        one, other = (part.astype(np.float64) for part in block.parts)
        return np.array([one @ one, other @ other, one @ other])

    first_square, second_square, dot = group.total(products)
    norms = [math.sqrt(square) if square > 1e-16 else 1.0 for square in (first_square, second_square)]
    cos = float(dot) / (norms[0] * norms[1])
    cos = min(1.0, max(-1.0, cos))
    first, second = 1 - t, t
    if abs(cos) <= 0.9995:
        angle = math.acos(cos)
        first, second = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
    return lambda block: block.parts[0] * np.float32(first) + block.parts[1] * np.float32(second)


def model_stock(group: Group, options: Any, values: Values) -> Mix:
    """`t mean(W_i) + (1 - t) B`, `t = N c / (1 + (N - 1) c)`, c the mean cosine between two models' changes."""
    count = len(group.parts)

    def products(block: Block) -> Array:
        deltas = np.stack([block.delta(n) for n in range(count)]).astype(np.float64)
        return np.asarray(deltas @ deltas.T)

    dots = group.total(products)
    norms = np.sqrt(np.diag(dots))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    cos = sum(min(1.0, max(-1.0, dots[i, j] / max(norms[i] * norms[j], 1e-6))) for i, j in pairs) / len(pairs)
    denominator = 1 + (count - 1) * cos
    t = np.float32(0.0 if abs(denominator) < 1e-6 else count * cos / denominator)

    def mix(block: Block) -> F32:
        assert block.base is not None
        mean = np.zeros_like(block.base)
        for part in block.parts:
            mean += part
        mean /= np.float32(count)
        return t * mean + (1 - t) * block.base

    return mix


def passthrough(group: Group, options: Any, values: Values) -> Mix:
    """The model itself, times a number."""
    return lambda block: block.parts[0] * np.float32(values["scale_by"][0])


Sparsify = Literal["all", "largest", "without_outliers", "random", "random_by_rank"]


def task(sparsify: Sparsify, *, elect: bool) -> Rule:
    """`B + lambda * sum w_i m_i d_i`: m_i says which elements of a change are kept (`sparsify`).

    elect: of the changes of an element, only those count that have the sign of their weighted sum (TIES). Normalized,
    it is divided by the weights that count. A change that lost elements may be scaled up again: to its sum of
    magnitudes ("l1") or by 1 / density.
    """

    def rule(group: Group, options: Any, values: Values) -> Mix:
        keeps = [_keep(sparsify, group, n, options, values) for n in range(len(group.parts))]
        weights = np.array(values["weight"], np.float32)
        factors = [np.float32(1)] * len(keeps)
        if sparsify != "all" and options.rescale != "none":
            factors = [_regain(group, n, keep, values["density"][n], options) for n, keep in enumerate(keeps)]

        def mix(block: Block) -> F32:
            assert block.base is not None
            deltas = np.stack([block.delta(n) for n in range(len(keeps))])
            for n, keep in enumerate(keeps):
                if keep is not everything:
                    deltas[n] *= keep(block.start, deltas[n])
                deltas[n] *= factors[n]
                deltas[n] *= weights[n]
            divisor: Any = weights.sum()
            if elect:
                sign = np.where(deltas.sum(axis=0) >= 0, np.float32(1), np.float32(-1))
                agrees = np.sign(deltas) == sign
                deltas *= agrees
                divisor = (weights[:, None] * agrees).sum(axis=0)
            mixed: F32 = deltas.sum(axis=0)
            if options.normalize:
                mixed /= np.where(np.abs(divisor) < 1e-8, np.float32(1), divisor)
            if options.lambda_ != 1:
                mixed *= np.float32(options.lambda_)
            return block.base + mixed

        return mix

    return rule


def _keep(sparsify: Sparsify, group: Group, part: int, options: Any, values: Values) -> Keep:
    if sparsify == "all":
        return everything
    density = values["density"][part]
    if sparsify == "largest":
        return largest(group, part, 0 if density <= 0 else max(1, int(density * group.size)))
    if sparsify == "without_outliers":
        return without_outliers(group, part, density, values["gamma"][part])
    if sparsify == "random":
        return random(group, part, density, options.seed)
    epsilon = values["epsilon"][part]
    if density < 1 and not epsilon < density < 1 - epsilon:
        raise ConfigError(
            f"{group.target}: density {density} and epsilon {epsilon}: density - epsilon and density + epsilon must lie"
            " between 0 and 1",
            USAGE,
        )
    return random_by_rank(group, part, density, epsilon, options.seed)


def _regain(group: Group, part: int, keep: Keep, density: float, options: Any) -> np.float32:
    """What kept elements are multiplied with."""
    if options.rescale == "density":
        return np.float32(1 / density if density > 0 else 0)

    def sums(block: Block) -> Array:
        delta = block.delta(part)
        sizes = np.abs(delta).astype(np.float64)
        return np.array([sizes.sum(), (sizes * keep(block.start, delta)).sum()])

    before, after = group.total(sums, only=part)
    return np.float32(before / after if before >= 1e-7 and after >= 1e-7 else 1)


RULES: dict[type[Any], Rule] = {
    Linear: linear,
    Ema: ema,
    Slerp: slerp,
    TaskArithmetic: task("all", elect=False),
    Ties: task("largest", elect=True),
    DareLinear: task("random", elect=False),
    DareTies: task("random", elect=True),
    Della: task("random_by_rank", elect=True),
    DellaLinear: task("random_by_rank", elect=False),
    Breadcrumbs: task("without_outliers", elect=False),
    BreadcrumbsTies: task("without_outliers", elect=True),
    ModelStock: model_stock,
    Passthrough: passthrough,
}
"""What each method of `options.py` does."""
