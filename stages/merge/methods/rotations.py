"""Methods that turn a layer's inputs or outputs by orthogonal matrices, applied to rows of the weight."""

import numpy as np

from postmill.stages.merge.edits import F32, I64, Array, Whole
from postmill.stages.merge.methods.module import Edits, Module


def oft(module: Module) -> Edits:
    """`W R^T`, R block-diagonal, each block the Cayley transform of a skew matrix (or its Neumann series).

    Source: OFT, <https://arxiv.org/abs/2306.07280>; the series: OFTv2, <https://arxiv.org/abs/2506.19847>.
    """
    module.need_full_strength()
    vectors = module.part("oft_R.weight").astype(np.float64)
    size = round((1 + np.sqrt(1 + 8 * vectors.shape[1])) / 2)
    if module.config.get("coft"):
        vectors = _near_identity(vectors, float(module.config.get("eps") or 6e-5))
    skew = np.zeros((len(vectors), size, size))
    skew[:, *np.triu_indices(size, 1)] = vectors
    skew -= skew.transpose(0, 2, 1)
    if module.config.get("use_cayley_neumann", False):
        turn = _neumann(skew, int(module.config.get("num_cayley_neumann_terms") or 5))
    else:
        turn = _cayley(skew)
    columns = module.size()[1]
    if columns % size:
        raise module.damaged(f"rotates blocks of {size} of {columns} inputs, which is no multiple")
    # one block may stand for all (block_share)
    blocks = np.broadcast_to(turn, (columns // size, size, size)).astype(np.float32)
    return module.row_wise(lambda weight, start: _turn_blocks(weight, blocks))


def _near_identity(vectors: Array, eps: float) -> Array:
    """Constrained OFT: skew matrices no longer than eps / sqrt(blocks)."""
    limit = eps / np.sqrt(len(vectors))
    norms = np.sqrt(2 * np.square(vectors).sum(axis=1, keepdims=True))
    return np.where(norms <= limit, vectors, vectors * (limit / np.maximum(norms, 1e-30)))


def _neumann(skew: Array, num_terms: int) -> Array:
    """`I + 2 Q + 2 Q^2 + ... + Q^(terms - 1)`, the last once, as PEFT sums it."""
    total = np.broadcast_to(np.eye(skew.shape[1]), skew.shape).copy()
    if num_terms > 1:
        total += 2 * skew
    if num_terms > 2:
        power = skew @ skew
        total += 2 * power
        for _ in range(3, num_terms - 1):
            power = power @ skew
            total += 2 * power
        total += power @ skew
    return total


def _cayley(skew: Array) -> Array:
    """`(I - Q) (I + Q)^-1`, which is orthogonal."""
    eye = np.eye(skew.shape[1])
    turned: Array = np.linalg.solve((eye + skew).transpose(0, 2, 1), (eye - skew).transpose(0, 2, 1))
    return turned.transpose(0, 2, 1)


def _turn_blocks(weight: F32, blocks: Array) -> F32:
    """Each block of columns times the transpose of its matrix."""
    num_blocks, size, _ = blocks.shape
    split = weight.reshape(len(weight), num_blocks, size).transpose(1, 0, 2)
    turned: F32 = (split @ blocks.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(weight.shape)
    return turned


def boft(module: Module) -> Edits:
    """`s * W (B_m ... B_1)^T`: block-diagonal turns of permuted inputs, one after the other; s scales each output.

    Source: BOFT, <https://arxiv.org/abs/2311.06243>.
    """
    module.need_full_strength()
    _, num_in = module.linear()
    raw = module.part("boft_R").astype(np.float64)
    num_factors, num_blocks, size, _ = raw.shape
    if num_blocks * size != num_in:
        raise module.damaged(f"has {num_blocks} blocks of {size} for {num_in} inputs")
    factors = [_cayley((matrix - matrix.transpose(0, 2, 1)) / 2).astype(np.float32) for matrix in raw]
    orders = [butterfly_order(num_in, num_blocks // 2**n, size // 2, num_factors - 1) for n in range(num_factors)]
    scale = module.part("boft_s").reshape(-1, 1)

    def turn(weight: F32, start: int) -> F32:
        for blocks, order in zip(factors, orders, strict=True):
            back = np.argsort(order)
            weight = _turn_blocks(weight[:, back], blocks)[:, order]
        return weight * scale[start : start + len(weight)]

    return module.row_wise(turn)


def butterfly_order(num_inputs: int, num_groups: int, width: int, factors: int) -> I64:
    """The inputs in the order in which one factor of BOFT takes them: in each group, even runs of `width`, then odd."""
    order = np.arange(num_inputs)
    if factors == 0:
        return order
    length = num_inputs // num_groups
    runs = np.arange(length // width)
    inside = (np.concatenate([runs[::2], runs[1::2]])[:, None] * width + np.arange(width)).reshape(-1)
    return (order.reshape(num_groups, length)[:, inside]).reshape(-1)


def hra(module: Module) -> Edits:
    """`W H_1 ... H_r`, mirrors `H = I - 2 u u^T`; with `apply_GS` their vectors are made orthogonal first.

    Source: HRA, <https://arxiv.org/abs/2405.17484>.
    """
    module.need_full_strength()
    vectors = module.part("hra_u")
    if module.config.get("apply_GS"):
        vectors = _orthogonal(vectors)
    units = vectors / np.linalg.norm(vectors, axis=0)

    def mirror(weight: F32, start: int) -> F32:
        for unit in units.T:
            weight -= np.outer(weight @ unit, 2 * unit)
        return weight

    return module.row_wise(mirror)


def _orthogonal(vectors: Array) -> Array:
    """Gram-Schmidt on columns, in their order. Mirrors of orthogonal vectors are `I - 2 U U^T` in any order."""
    done: list[Array] = []
    for vector in vectors.T:
        for other in done:
            vector = vector - (other @ vector) * other  # noqa: PLW2901
        done.append(vector / np.linalg.norm(vector))
    return np.stack(done, axis=1)


def road(module: Module) -> Edits:
    """`R W` and `R b`: R turns and scales pairs of outputs, the halves of a group.

    Source: RoAd, <https://arxiv.org/abs/2409.00119>.
    """
    module.need_full_strength()
    module.linear()
    group = int(module.config["group_size"])
    theta, alpha = module.part("road_theta"), module.part("road_alpha")
    variant = module.config.get("variant", "road_1")
    if variant == "road_1":
        theta, alpha = (np.repeat(v.reshape(-1, group // 2), 2, axis=0).reshape(-1) for v in (theta, alpha))
        first, second = alpha * np.cos(theta), alpha * np.sin(theta)
    elif variant == "road_2":
        first, second = alpha * np.cos(theta), alpha * np.sin(theta)
    else:
        theta, alpha = theta.reshape(-1, 2, group), alpha.reshape(-1, 2, group)
        first = (alpha[:, 0] * np.cos(theta[:, 0])).reshape(-1)
        second = (alpha[:, 1] * np.sin(theta[:, 1])).reshape(-1)

    def turn(weight: F32) -> F32:
        halves = weight.reshape(-1, 2, group // 2, weight.shape[1])
        partner = np.stack([-halves[:, 1], halves[:, 0]], axis=1).reshape(weight.shape)
        turned: F32 = first[:, None] * weight + second[:, None] * partner
        return turned

    edits = module.whole(turn)
    if module.has_bias():
        bias = Module(module.path, module.name, 0, {}, {}, module.config, module.base, 1.0)
        edits.append((bias.tensor("bias"), Whole((len(first), 1), turn)))
    return edits
