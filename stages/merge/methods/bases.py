"""Methods whose matrices come from a pool that all modules share; each module has only how much of each it takes."""

import numpy as np

from postmill.stages.merge.edits import F32, Array
from postmill.stages.merge.methods.module import Edits, Module


def vera(module: Module) -> Edits:
    """`W + (b * B) (d * A)`, A and B random and shared. Source: VeRA, <https://arxiv.org/abs/2310.11454>."""
    return _vera(module, "vera", halves=1)


def pvera(module: Module) -> Edits:
    """VeRA whose first half of d is a mean and the second its variance: the mean is merged, as PEFT does."""
    return _vera(module, "pvera", halves=2)


def _vera(module: Module, name: str, halves: int) -> Edits:
    module.need_full_strength()
    num_out, num_in = module.linear()
    a, b = module.common(f"{name}_A")[:, :num_in], module.common(f"{name}_B")[:num_out]
    down, up = module.part(f"{name}_lambda_d"), module.part(f"{name}_lambda_b")
    a, down = a[: len(a) // halves], down[: len(down) // halves]
    return module.low_rank(up[:, None] * b, down[:, None] * a, 1.0)


def randlora(module: Module) -> Edits:
    """`W + alpha / rank * sum_n B_n L_n A G_n`: random bases, of full rank together, weighed by lambda and gamma.

    The factors are as large as the weight, so they are made when it is written.
    Source: RandLoRA, <https://arxiv.org/abs/2502.00987>.
    """
    module.need_full_strength()
    num_out, num_in = module.linear()
    weigh, gamma = module.part("randlora_lambda"), module.part("randlora_gamma")
    small, large = min(num_out, num_in), max(num_out, num_in)
    a = module.common("randlora_A")[:, : len(gamma), :small]
    b = module.common("randlora_B")[:large, : len(gamma), :]
    scale = np.float32(module.config["randlora_alpha"] / module.config["r"])

    def add(weight: F32) -> F32:
        scaled = (weigh[:, :, None] * a * gamma[None]).reshape(-1, small)
        flat = b.reshape(large, -1)
        delta = flat @ scaled if small == num_in else scaled.T @ flat.T
        return weight + delta * scale

    return module.whole(add)


def vblora(module: Module) -> Edits:
    """`W + B A`, both assembled from vectors of a bank: the top k by their logits, weighed by softmax.

    Source: VB-LoRA, <https://arxiv.org/abs/2405.15179>.
    """
    module.need_full_strength()
    module.linear()
    bank = module.common("vblora_vector_bank")
    a, b = _from_bank(module, "vblora_logits_A", bank), _from_bank(module, "vblora_logits_B", bank)
    return module.low_rank(b.transpose(0, 2, 1).reshape(-1, b.shape[1]), a.reshape(len(a), -1), 1.0)


def _from_bank(module: Module, name: str, bank: Array) -> Array:
    """(tiles, tiles, vector): mixtures of the bank's vectors, from logits or from the top k saved alone."""
    if f"{name}_topk_indices" in module.parts:
        index, known = module.part(f"{name}_topk_indices"), module.part(f"{name}_topk_weights")
        shares = np.concatenate([known, 1 - known.sum(-1, keepdims=True)], axis=-1)
    else:
        logits = module.part(name)
        index = np.argsort(-logits, axis=-1, kind="stable")[..., : int(module.config["topk"])]
        best = np.take_along_axis(logits, index, -1)
        shares = np.exp(best - best.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
    mixed: Array = (shares[..., None] * bank[index]).sum(-2, dtype=np.float32)
    return mixed
