"""Q-GaLore's update: GaLore whose projection is kept in few bits and found anew only while it moves.

Source: Q-GaLore, algorithm 1, <https://arxiv.org/abs/2407.08296>, and the numbers of its authors' code: groups of 256,
queues of five cosines, gaps that double. Its weights of eight bits are not done: here they are float32.
"""

from typing import Any

import torch
from torch import Tensor

from postmill.stages.train.low_rank_optimizers import adam
from postmill.stages.train.small_state_optimizers import decode, encode

_GROUP = 256
_QUEUE = 5


def q_galore(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """scale * P^T adam(P G), P in codes of `bits`; Adam's moments are in codes of eight between steps."""
    tall = gradient.shape[0] >= gradient.shape[1]
    count = int(state["step"])
    if "next" not in state or count >= int(state["next"]):
        _look(gradient, state, group, tall=tall)
    projector = _decoded(state, (-1, min(gradient.shape)))
    low = gradient @ projector.T if tall else projector @ gradient
    inner = _moments(state)
    update = adam(low, inner, group)
    _keep_moments(state, inner)
    scale: float = group["scale"]
    return (update @ projector if tall else projector.T @ update) * scale


def _look(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], *, tall: bool) -> None:
    """Find the main directions, keep them in codes, and settle when to look again."""
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    projector = (vh[: group["rank"]] if tall else u[:, : group["rank"]].T).contiguous()
    gap = state.get("gap", torch.tensor(group["gap"]))
    if "first" in state:
        # a direction has no sign, and which one the decomposition gives it is chance
        cosine = torch.nn.functional.cosine_similarity(state["first"], projector[0], dim=0).abs()
        queue = torch.cat([state.get("cosines", cosine.new_zeros(0)), cosine[None]])[-_QUEUE:]
        state["cosines"] = queue
        if len(queue) == _QUEUE and float(queue.mean()) >= group["settled"]:
            gap = gap * 2
    state["gap"], state["first"] = gap, projector[0].clone()
    state["next"] = state["step"] + gap
    state["projector"], state["projector_low"], state["projector_step"] = encode_linear(projector, group["bits"])
    state["projector_bits"], state["projector_size"] = torch.tensor(group["bits"]), torch.tensor(projector.numel())


def encode_linear(values: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (uint8, two to a byte for four bits), and the smallest number and the step of each group of 256."""
    flat = torch.nn.functional.pad(values.flatten(), (0, -values.numel() % _GROUP)).view(-1, _GROUP)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    codes = ((flat - low) / step).round().to(torch.uint8).flatten()
    if bits == 4:
        codes = codes[::2] | (codes[1::2] << 4)
    return codes, low.squeeze(1), step.squeeze(1)


def decode_linear(codes: Tensor, low: Tensor, step: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` numbers (float32) that `encode_linear` made codes of, rounded."""
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=1).flatten()
    found = codes.view(-1, _GROUP).float() * step[:, None] + low[:, None]
    return found.flatten()[:count]


def _decoded(state: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
    return decode_linear(
        state["projector"],
        state["projector_low"],
        state["projector_step"],
        int(state["projector_bits"]),
        int(state["projector_size"]),
    ).view(shape)


def _moments(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `adam` works on."""
    inner = {"step": state["step"]}
    if "exp_avg" in state:
        inner["exp_avg"] = decode(state["exp_avg"], state["exp_avg_scale"], signed=True)
        inner["exp_avg_sq"] = decode(state["exp_avg_sq"], state["exp_avg_sq_scale"], signed=False)
    return inner


def _keep_moments(state: dict[str, Tensor], inner: dict[str, Tensor]) -> None:
    state["exp_avg"], state["exp_avg_scale"] = encode(inner["exp_avg"], signed=True)
    state["exp_avg_sq"], state["exp_avg_sq_scale"] = encode(inner["exp_avg_sq"], signed=False)
