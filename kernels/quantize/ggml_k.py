"""K-quants: blocks of 256 weights in groups of 16 or 32, whose own scales are quantized too.

A group's scale is the best of some twenty that are tried, by weighted squares; the scales of a block then share one
float16. The searches are ggml's (`make_qkx2_quants`, `make_qx_quants`, `make_q3_quants` of ggml-quants.c) for many
groups at once. Sums run over weights in the order of its loops, and products in that of its expressions: rounded
otherwise, up to 3 blocks in a hundred would choose a neighbouring scale (xllamacpp 2026.10.11549, November 2026).
Source: <https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c>.
Letters: B blocks, G groups of a block, n weights of a group.
"""

import torch
from torch import Tensor

_NOTHING = 1e-15
"""A group whose weights are all smaller is zero."""
_TENTH = torch.tensor(0.1)
"""In float32, as there: between two finenesses."""


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _halves(raw: Tensor) -> Tensor:
    return raw.contiguous().view(torch.float16).float()


def in_order(terms: Tensor) -> Tensor:
    """Sum over the last axis, one term after another in float32, as a loop adds them: other orders round otherwise, and
    then a neighbouring scale can be chosen."""
    total = terms[..., 0].clone()
    for at in range(1, terms.shape[-1]):
        total += terms[..., at]
    return total


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 0.0)


def _with_minimum(
    x: Tensor, weight: Tensor, top: int, *, first: float, tries: int, absolute: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale [B, G], minimum [B, G] (taken off, at least 0) and codes 0..top of groups [B, G, n].

    Tries `tries` + 1 finenesses around top / range, each with the least-squares scale and minimum for its codes.
    absolute: errors are measured by size instead of square.
    """

    def error_of(scale: Tensor, low: Tensor, codes: Tensor) -> Tensor:
        off = scale.unsqueeze(-1) * codes + low.unsqueeze(-1) - x
        return in_order(weight * (off.abs() if absolute else off * off))

    low, high = x.amin(-1).clamp(max=0), x.amax(-1)
    width = high - low
    flat = width == 0
    safe = torch.where(flat, 1.0, width)
    sum_w, sum_x = in_order(weight), in_order(weight * x)
    codes = (top / safe.unsqueeze(-1) * (x - low.unsqueeze(-1))).round().clamp(0, top)
    scale = 1.0 / (top / safe)
    best = error_of(scale, low, codes)
    for number in range(tries + 1):
        # as ggml does, from the best minimum so far and not from the lowest weight
        fineness = (first + _TENTH * number + top) / torch.where(flat, 1.0, high - low)
        attempt_codes = (fineness.unsqueeze(-1) * (x - low.unsqueeze(-1))).round().clamp(0, top)
        weighted = weight * attempt_codes
        sum_l, sum_l2, sum_xl = in_order(weighted), in_order(weighted * attempt_codes), in_order(weighted * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        this_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        this_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        above = this_low > 0
        this_scale = torch.where(above, sum_xl / sum_l2, this_scale)
        this_low = torch.where(above, 0.0, this_low)
        error = error_of(this_scale, this_low, attempt_codes)
        better = (det > 0) & (error < best)
        best = torch.where(better, error, best)
        scale, low = torch.where(better, this_scale, scale), torch.where(better, this_low, low)
        codes = torch.where(better.unsqueeze(-1), attempt_codes, codes)
    codes = torch.where(flat.unsqueeze(-1), 0.0, codes)
    return torch.where(flat, 0.0, scale), 0.0 - low, codes


def _symmetric(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Scale [B, G] and codes 0..2 half - 1 (zero is `half`) of groups [B, G, n], squares weighted by squares."""
    size = x.abs()
    largest = x.gather(-1, size.argmax(-1, keepdim=True)).squeeze(-1)
    nothing = size.amax(-1) < _NOTHING
    safe = torch.where(nothing, 1.0, largest)
    weight = x * x

    def attempt(fineness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes = (fineness.unsqueeze(-1) * x).round().clamp(-half, half - 1)
        return codes, in_order(weight * x * codes), in_order(weight * codes * codes)

    codes, sum_lx, sum_l2 = attempt(-half / safe)
    scale = torch.where(sum_l2 != 0, sum_lx / sum_l2, 0.0)
    best = scale * sum_lx
    for number in (*range(-9, 0), *range(1, 10)):
        attempt_codes, sum_lx, sum_l2 = attempt(-(half + _TENTH * number) / safe)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        codes = torch.where(better.unsqueeze(-1), attempt_codes, codes)
        scale = torch.where(better, sum_lx / sum_l2, scale)
        best = torch.where(better, scale * sum_lx, best)
    codes = torch.where(nothing.unsqueeze(-1), float(-half), codes)
    return torch.where(nothing, 0.0, scale), codes + half


def _by_descent(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale [B, G] and codes 0..7 (zero is 4) of groups: each code in turn moves where that helps, five times over."""
    size = x.abs()
    largest = x.gather(-1, size.argmax(-1, keepdim=True)).squeeze(-1)
    nothing = size.amax(-1) < _NOTHING
    codes = ((-4 / torch.where(nothing, 1.0, largest)).unsqueeze(-1) * x).round().clamp(-4, 3)
    weight = x * x
    sum_lx, sum_l2 = in_order(weight * x * codes), in_order(weight * codes * codes)
    for _ in range(5):
        for at in range(x.shape[-1]):
            w, here, code = weight[..., at], x[..., at], codes[..., at]
            rest_lx = sum_lx - w * here * code
            rest_l2 = sum_l2 - w * code * code
            new = (here * rest_l2 / torch.where(rest_lx > 0, rest_lx, 1.0)).round().clamp(-4, 3)
            new_lx, new_l2 = rest_lx + w * here * new, rest_l2 + w * new * new
            better = (rest_lx > 0) & (new != code) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[..., at] = torch.where(better, new, code)
            sum_lx, sum_l2 = torch.where(better, new_lx, sum_lx), torch.where(better, new_l2, sum_l2)
    codes = torch.where(nothing.unsqueeze(-1), -4.0, codes)
    return torch.where(nothing, 0.0, _ratio(sum_lx, sum_l2)), codes + 4


def _share(values: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Values [B, G], at least 0, as float16 [B, 1] times codes 0..top."""
    largest = values.amax(-1, keepdim=True)
    codes = (torch.where(largest > 0, top / largest, 0.0) * values).round().clamp(max=top)
    return (largest / top).half(), codes.to(torch.uint8)


def _codes_on(x: Tensor, scale: Tensor, low: Tensor | float, bounds: tuple[int, int], kept: Tensor) -> Tensor:
    """Codes of [B, G, n] on grids that are as stored now; where the scale is 0, `kept`. uint8, lowest is 0."""
    steps = ((x + low) / torch.where(scale == 0, 1.0, scale)).round().clamp(*bounds) - bounds[0]
    return torch.where(scale == 0, kept, steps).to(torch.uint8)


def _quarters(codes: Tensor) -> Tensor:
    """Codes 0..3 of 256 weights to 64 bytes: of each 128, four that lie 32 apart share one."""
    split = codes.view(-1, 2, 4, 32)
    return (split[:, :, 0] | split[:, :, 1] << 2 | split[:, :, 2] << 4 | split[:, :, 3] << 6).flatten(1)


def _quarters_back(raw: Tensor) -> Tensor:
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 1, 4, 1)
    return ((raw.view(-1, 2, 1, 32) >> shift) & 3).flatten(1)


def _pairs(codes: Tensor) -> Tensor:
    """Codes 0..15 of 256 weights to 128 bytes: of each 64, two that lie 32 apart share one."""
    split = codes.view(-1, 4, 2, 32)
    return (split[:, :, 0] | split[:, :, 1] << 4).flatten(1)


def _pairs_back(raw: Tensor) -> Tensor:
    split = raw.view(-1, 4, 1, 32)
    return torch.cat([split & 15, split >> 4], 2).flatten(1)


def _six_bits(scales: Tensor, minima: Tensor) -> Tensor:
    """Eight scales and eight minima of six bits in twelve bytes."""
    first = scales[:, :4] | (scales[:, 4:] >> 4) << 6
    second = minima[:, :4] | (minima[:, 4:] >> 4) << 6
    return torch.cat([first, second, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], 1)


def _six_bits_back(raw: Tensor) -> tuple[Tensor, Tensor]:
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = torch.cat([first & 63, third & 15 | (first >> 6) << 4], 1)
    return scales, torch.cat([second & 63, third >> 4 | (second >> 6) << 4], 1)


def q2(x: Tensor) -> Tensor:
    """Q2_K: 2.6 bits a weight."""
    groups = x.view(-1, 16, 16)
    fitted, minima, kept = _with_minimum(groups, groups.abs(), 3, first=-0.5, tries=15, absolute=True)
    (step, scales), (low_step, lows) = _share(fitted, 15), _share(minima, 15)
    scale, low = step.float() * scales, low_step.float() * lows
    codes = _codes_on(groups, scale.unsqueeze(-1), low.unsqueeze(-1), (0, 3), kept).flatten(1)
    return torch.cat([scales | lows << 4, _quarters(codes), _bytes(step), _bytes(low_step)], 1)


def q2_back(raw: Tensor) -> Tensor:
    """Its numbers."""
    shared, step, low_step = raw[:, :16], _halves(raw[:, 80:82]), _halves(raw[:, 82:84])
    codes = _quarters_back(raw[:, 16:80].contiguous()).view(-1, 16, 16).float()
    scale, low = step * (shared & 15), low_step * (shared >> 4)
    return (scale.unsqueeze(-1) * codes - low.unsqueeze(-1)).flatten(1)


def q3(x: Tensor) -> Tensor:
    """Q3_K: 3.4 bits a weight."""
    groups = x.view(-1, 16, 16)
    fitted, kept = _by_descent(groups)
    largest = fitted.gather(-1, fitted.abs().argmax(-1, keepdim=True))
    fineness = torch.where(largest != 0, -32 / largest, 0.0)
    signed = (fineness * fitted).round().clamp(-32, 31)
    # a block of zeros has no scales at all, which read as -32
    scales = torch.where(largest != 0, signed + 32, 0.0).to(torch.uint8)
    step = torch.where(largest != 0, 1 / fineness, 0.0).half()
    codes = _codes_on(groups, (step.float() * (scales.float() - 32)).unsqueeze(-1), 0.0, (-4, 3), kept).flatten(1)
    high = ((codes >> 2).view(-1, 8, 32) << torch.arange(8, dtype=torch.uint8).view(1, 8, 1)).sum(1, dtype=torch.uint8)
    low = scales[:, :8] & 15 | (scales[:, 8:] & 15) << 4
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 4, 1)
    upper = ((scales >> 4).view(-1, 4, 4) << shift).sum(1, dtype=torch.uint8)
    return torch.cat([high, _quarters(codes & 3), low, upper, _bytes(step)], 1)


def q3_back(raw: Tensor) -> Tensor:
    """Its numbers."""
    step, low, upper = _halves(raw[:, 108:110]), raw[:, 96:104], raw[:, 104:108]
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).view(1, 4, 1)
    top = ((upper.unsqueeze(1) >> shift) & 3).flatten(1)
    scales = (torch.cat([low & 15, low >> 4], 1) | top << 4).float() - 32
    high = (raw[:, :32].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8).view(1, 8, 1)) & 1
    codes = (_quarters_back(raw[:, 32:96].contiguous()) | high.flatten(1) << 2).float() - 4
    return ((step * scales).unsqueeze(-1) * codes.view(-1, 16, 16)).flatten(1)


def _q45(x: Tensor, top: int, first: float, tries: int) -> tuple[Tensor, Tensor]:
    """Scales of Q4_K and Q5_K as stored, 16 bytes, and the codes [B, 256]."""
    groups = x.view(-1, 8, 32)
    weight = (in_order(groups.square()) / 32).sqrt().unsqueeze(-1) + groups.abs()
    fitted, minima, kept = _with_minimum(groups, weight, top, first=first, tries=tries, absolute=False)
    (step, scales), (low_step, lows) = _share(fitted, 63), _share(minima, 63)
    scale, low = step.float() * scales, low_step.float() * lows
    codes = _codes_on(groups, scale.unsqueeze(-1), low.unsqueeze(-1), (0, top), kept).flatten(1)
    return torch.cat([_bytes(step), _bytes(low_step), _six_bits(scales, lows)], 1), codes


def _q45_back(raw: Tensor, codes: Tensor) -> Tensor:
    scales, lows = _six_bits_back(raw[:, 4:16])
    scale, low = _halves(raw[:, :2]) * scales, _halves(raw[:, 2:4]) * lows
    return (scale.unsqueeze(-1) * codes.view(-1, 8, 32).float() - low.unsqueeze(-1)).flatten(1)


def q4(x: Tensor) -> Tensor:
    """Q4_K: 4.5 bits a weight."""
    scales, codes = _q45(x, 15, -1.0, 20)
    return torch.cat([scales, _pairs(codes)], 1)


def q4_back(raw: Tensor) -> Tensor:
    """Its numbers."""
    return _q45_back(raw, _pairs_back(raw[:, 16:].contiguous()))


def q5(x: Tensor) -> Tensor:
    """Q5_K: 5.5 bits a weight."""
    scales, codes = _q45(x, 31, -0.5, 15)
    high = ((codes >> 4).view(-1, 8, 32) << torch.arange(8, dtype=torch.uint8).view(1, 8, 1)).sum(1, dtype=torch.uint8)
    return torch.cat([scales, high, _pairs(codes & 15)], 1)


def q5_back(raw: Tensor) -> Tensor:
    """Its numbers."""
    high = (raw[:, 16:48].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8).view(1, 8, 1)) & 1
    return _q45_back(raw, _pairs_back(raw[:, 48:].contiguous()) | high.flatten(1) << 4)


def q6(x: Tensor) -> Tensor:
    """Q6_K: 6.6 bits a weight."""
    groups = x.view(-1, 16, 16)
    fitted, kept = _symmetric(groups, 32)
    largest = fitted.gather(-1, fitted.abs().argmax(-1, keepdim=True))
    nothing = largest.abs() < _NOTHING
    fineness = -128 / torch.where(nothing, 1.0, largest)
    scales = torch.where(nothing, 0.0, (fineness * fitted).round().clamp(max=127))
    step = torch.where(nothing, 0.0, 1 / fineness).half()
    codes = _codes_on(groups, (step.float() * scales).unsqueeze(-1), 0.0, (-32, 31), kept)
    codes = torch.where(nothing.unsqueeze(-1), torch.zeros_like(codes), codes).flatten(1)
    split = (codes & 15).view(-1, 2, 2, 64)
    low = (split[:, :, 0] | split[:, :, 1] << 4).flatten(1)
    return torch.cat([low, _quarters(codes >> 4), _bytes(scales.to(torch.int8)), _bytes(step)], 1)


def q6_back(raw: Tensor) -> Tensor:
    """Its numbers."""
    low = raw[:, :128].reshape(-1, 2, 1, 64)
    codes = torch.cat([low & 15, low >> 4], 2).flatten(1) | _quarters_back(raw[:, 128:192].contiguous()) << 4
    scales = raw[:, 192:208].contiguous().view(torch.int8).float() * _halves(raw[:, 208:210])
    return (scales.unsqueeze(-1) * (codes.view(-1, 16, 16).float() - 32)).flatten(1)
