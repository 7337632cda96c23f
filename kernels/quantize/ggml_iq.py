"""IQ4_NL and IQ4_XS: four bits that name one of sixteen steps which lie closer near zero, with a scale for 32 weights.

The scale is the best of sixteen that are tried, by squares weighted with squares, as in ggml's
`quantize_row_iq4_nl_impl`; sums run over weights in its order.
Source: <https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c>.
Letters: B blocks, G groups of 32 weights of a block, n weights of a group.
"""

import torch
from torch import Tensor

from postmill.kernels.quantize.ggml_k import in_order

STEPS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_NOTHING = 1e-15
"""A group whose weights are all smaller is zero."""
_TRIES = 7


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _halves(raw: Tensor) -> Tensor:
    return raw.contiguous().view(torch.float16).float()


def _nearest(values: Tensor) -> Tensor:
    """Number of the nearest step; between two, the upper one. int64."""
    steps = torch.tensor(STEPS, dtype=torch.float32)
    upper = torch.bucketize(values, steps, right=True).clamp(1, 15)
    return upper - (values - steps[upper - 1] < steps[upper] - values).long()


def _best_scale(x: Tensor) -> Tensor:
    """Scale [B, G] of groups [B, G, n], least squares for the codes of the best of the scales that are tried."""
    steps = torch.tensor(STEPS, dtype=torch.float32)
    size = x.abs()
    largest = x.gather(-1, size.argmax(-1, keepdim=True)).squeeze(-1)
    nothing = size.amax(-1) < _NOTHING
    safe = torch.where(nothing, 1.0, largest)
    weight = x * x

    def attempt(fineness: Tensor) -> tuple[Tensor, Tensor]:
        found = steps[_nearest(fineness.unsqueeze(-1) * x)]
        weighted = weight * found
        return in_order(weighted * x), in_order(weighted * found)

    sum_qx, sum_q2 = attempt(1 / (-safe / STEPS[0]))
    scale = sum_qx / sum_q2
    best = scale * sum_qx
    for number in range(-_TRIES, _TRIES + 1):
        sum_qx, sum_q2 = attempt((number + STEPS[0]) / safe)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale = torch.where(better, sum_qx / sum_q2, scale)
        best = torch.where(better, scale * sum_qx, best)
    return torch.where(nothing, 0.0, scale)


def _codes(x: Tensor, scale: Tensor) -> Tensor:
    """Numbers of steps for groups [B, G, n] at their scales [B, G]. uint8."""
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return _nearest(inverse.unsqueeze(-1) * x).to(torch.uint8)


def _pairs(codes: Tensor) -> Tensor:
    """Codes [B, G, 32] to bytes: the first half of a group in the low bits, the second half in the high ones."""
    return (codes[..., :16] | codes[..., 16:] << 4).flatten(1)


def _pairs_back(raw: Tensor, scale: Tensor) -> Tensor:
    """Numbers of bytes [B, 16 G] at scales [B, G]."""
    split = raw.reshape(len(raw), -1, 16)
    codes = torch.cat([split & 15, split >> 4], -1).long()
    return (scale.unsqueeze(-1) * torch.tensor(STEPS, dtype=torch.float32)[codes]).flatten(1)


def iq4_nl(x: Tensor) -> Tensor:
    """IQ4_NL: 4.5 bits a weight, blocks of 32."""
    groups = x.view(-1, 1, 32)
    scale = _best_scale(groups)
    return torch.cat([_bytes(scale.half()), _pairs(_codes(groups, scale))], 1)


def iq4_nl_back(raw: Tensor) -> Tensor:
    """Its numbers."""
    return _pairs_back(raw[:, 2:], _halves(raw[:, :2]))


def iq4_xs(x: Tensor) -> Tensor:
    """IQ4_XS: 4.25 bits a weight, blocks of 256 whose eight scales have six bits each."""
    groups = x.view(-1, 8, 32)
    fitted = _best_scale(groups)
    largest = fitted.gather(-1, fitted.abs().argmax(-1, keepdim=True))
    step = -largest / 32
    signed = (torch.where(step == 0, 0.0, 1 / step) * fitted).round().clamp(-32, 31)
    codes = _codes(groups, step * signed)
    scales = (signed + 32).to(torch.uint8)
    low = scales & 15
    shift = torch.arange(0, 16, 2)
    high = ((scales >> 4).long() << shift).sum(1, keepdim=True)
    high_bytes = torch.cat([high & 255, high >> 8], 1).to(torch.uint8)
    return torch.cat([_bytes(step.half()), high_bytes, low[:, ::2] | low[:, 1::2] << 4, _pairs(codes)], 1)


def iq4_xs_back(raw: Tensor) -> Tensor:
    """Its numbers."""
    high = raw[:, 2:3].long() | raw[:, 3:4].long() << 8
    low = torch.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], -1).flatten(1).long()
    scales = (low | (high >> torch.arange(0, 16, 2) & 3) << 4) - 32
    return _pairs_back(raw[:, 8:], _halves(raw[:, :2]) * scales)
