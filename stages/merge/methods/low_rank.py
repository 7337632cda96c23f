"""Kin of LoRA: products of small matrices, combined in other ways."""

import math

import numpy as np

from postmill.stages.merge.edits import F32
from postmill.stages.merge.methods.module import Edits, Module


def adalora(module: Module) -> Edits:
    """`W + alpha / rank * B (A * E)`, rank being what pruning left. Source: <https://arxiv.org/abs/2303.10512>."""
    module.need_full_strength()
    module.linear()
    a, b, e = (module.part(f"lora_{name}") for name in "ABE")
    rank = float(len(a))
    alpha = float(module.config.get("lora_alpha") or 0)
    return module.low_rank(b, a * e, (alpha if alpha > 0 else rank) / (rank + 1e-5))


def delora(module: Module) -> Edits:
    """`W + B diag(lambda / (rank |A_i| |B_i|)) A * w`, w being the norms of W's columns when training began.

    Source: DeLoRA, <https://arxiv.org/abs/2503.18225>.
    """
    module.need_full_strength()
    module.linear()
    a, b = module.part("delora_A"), module.part("delora_B")
    norms = np.maximum(np.linalg.norm(a, axis=1), 1e-4) * np.maximum(np.linalg.norm(b, axis=0), 1e-4)
    scaled = b * (module.part("delora_lambda") / len(a) / norms)[None, :]
    return module.low_rank(scaled, a * module.part("delora_w_norm")[None, :], 1.0)


def hira(module: Module) -> Edits:
    """`W + W * (B A)`, element by element. Source: HiRA, <https://openreview.net/forum?id=TwJrTz9cRS>."""
    module.need_full_strength()
    module.linear()
    a, b = module.part("hira_A"), module.part("hira_B")
    return module.row_wise(lambda weight, start: weight + weight * (b[start : start + len(weight)] @ a))


def loha(module: Module) -> Edits:
    """`W + alpha / rank * (A1 B1) * (A2 B2)`, the products multiplied element by element.

    Source: FedPara, <https://arxiv.org/abs/2108.06098>.
    """
    module.need_full_strength()
    if "hada_t1" in module.parts:
        raise module.damaged("LoHa with use_effective_conv2d is not merged here; use PEFT's merge_and_unload")
    a1, b1, a2, b2 = (module.part(f"hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    scale = np.float32(module.option("alpha", "alpha_pattern") / module.option("r", "rank_pattern"))

    def rows(weight: F32, start: int) -> F32:
        mine = slice(start, start + len(weight))
        weight += (a1[mine] @ b1) * (a2[mine] @ b2) * scale
        return weight

    return module.row_wise(rows)


def lokr(module: Module) -> Edits:
    """`W + alpha / rank * kron(W1, W2)`. Source: KronA, <https://arxiv.org/abs/2212.10650>."""
    module.need_full_strength()
    if "lokr_t2" in module.parts:
        raise module.damaged("LoKr with use_effective_conv2d is not merged here; use PEFT's merge_and_unload")
    first, second = (
        module.parts[name] if name in module.parts else module.part(f"{name}_a") @ module.part(f"{name}_b")
        for name in ("lokr_w1", "lokr_w2")
    )
    scale = np.float32(module.option("alpha", "alpha_pattern") / module.option("r", "rank_pattern"))
    height = second.shape[0]
    second = second.reshape(height, -1)
    if len(module.base.shape(module.tensor())) > 2:  # of a convolution: the kernel is in W2 alone
        kernel = math.prod(module.base.shape(module.tensor())[2:])
        second = second.reshape(height, -1, kernel)

    def rows(weight: F32, start: int) -> F32:
        low, high = start // height, -(-(start + len(weight)) // height)
        block = np.einsum("ab,cd->acbd" if second.ndim == 2 else "ab,cde->acbde", first[low:high], second)
        flat = block.reshape((high - low) * height, -1)
        weight += flat[start - low * height : start - low * height + len(weight)] * scale
        return weight

    return module.row_wise(rows)


def gralora(module: Module) -> Edits:
    """`W + alpha / rank * D`: D is a grid of blocks, each of a low rank of its own, and perhaps LoRA beside it.

    Source: GraLoRA, <https://arxiv.org/abs/2505.20355>. Block (row m, column n) of D is
    `B_m[n's ranks]^T A_n[m's ranks]^T`.
    """
    module.need_full_strength()
    num_out, num_in = module.linear()
    a, b = module.part("gralora_A"), module.part("gralora_B")
    grid, _, rank = a.shape
    part, height, width = rank // grid, num_out // grid, num_in // grid
    hybrid = int(module.config.get("hybrid_r") or 0)
    scale = np.float32(float(module.config["alpha"]) / (rank + hybrid))
    delta = np.zeros((num_out, num_in), np.float32)
    for m in range(grid):
        for n in range(grid):
            left = b[m, n * part : (n + 1) * part, :]
            right = a[n, :, m * part : (m + 1) * part]
            delta[m * height : (m + 1) * height, n * width : (n + 1) * width] = left.T @ right.T
    if hybrid:
        delta += module.part("gralora_B_general.weight") @ module.part("gralora_A_general.weight")
    return module.row_wise(lambda weight, start: weight + delta[start : start + len(weight)] * scale)
