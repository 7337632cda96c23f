"""Weights on a grid: every run of columns of a row has a scale, perhaps a zero point, and its weights are steps of it.

One description of the grid (`Form`) and one of what lies on it (`Encoded`) for every method and every file layout:
methods choose scales and codes, layouts arrange bits. Codes are signed (-8 to 7 for four bits), as compressed-tensors
has them; layouts that count from zero add half the range. Scales are rounded to the dtype they are stored in *before*
codes are chosen, so that what a reader computes is what was fitted.
Letters: N rows (outputs), K columns (inputs), G groups of a row.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FP8_MAX, FP4_MAX = 448.0, 6.0
"""The largest numbers of E4M3, which has no infinities, and of E2M1."""
BLOCK = 128
"""Rows and columns that share a scale in blocks of FP8."""


class Form(NamedTuple):
    """A grid. `group` is how many columns share a scale; 0 is the whole row."""

    bits: int = 4
    group: int = 128
    symmetric: bool = True
    floating: bool = False
    """Codes are FP8 (E4M3), or FP4 (E2M1) for 4 bits, instead of integers."""
    scales: str = ""
    """What scales are, where that is not the dtype they are stored in: `e4m3`, FP8 under one power of two (NVFP4);
    `e8m0`, powers of two (MXFP4); `block`, float32 that 128 rows share as well."""

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def largest(self) -> float:
        """Of floating codes."""
        return FP8_MAX if self.bits == 8 else FP4_MAX

    def columns(self, num_columns: int) -> int:
        """Columns of one group in a row of `num_columns`."""
        return self.group or num_columns


class Encoded(NamedTuple):
    """One weight on its grid. codes: int8, or float8_e4m3fn, which holds all of FP4 [N, K]; scale: [N, G], as stored
    (float32 where the form has scales of its own); zero: int8 [N, G]."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


def by_group(weight_NK: Tensor, form: Form) -> Tensor:
    """The weight as [N, G, columns], a view. The columns must divide: the caller has checked it."""
    rows, columns = weight_NK.shape
    return weight_NK.view(rows, -1, form.columns(columns))


def fit(
    weight_NK: Tensor, form: Form, dtype: torch.dtype, shrink: Tensor | float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Scale [N, G] of `dtype` and zero point (float32 integers, signed) of a grid that holds every weight.

    `shrink` times the range is what the grid then covers; a number, or one for each group [N, G].
    An all-zero group gets scale 1.
    """
    groups = by_group(weight_NK, form)
    if form.scales:
        return _own_scales(groups.abs().amax(-1), shrink, form), None
    if form.floating or form.symmetric:
        # 15 steps of four bits lie between -8 and 7: their half is 7.5, the convention of compressed-tensors
        steps = form.largest if form.floating else (form.highest - form.lowest) / 2
        scale = _stored(groups.abs().amax(-1) * shrink / steps, dtype)
        return scale, None
    low, high = groups.amin(-1).clamp(max=0) * shrink, groups.amax(-1).clamp(min=0) * shrink
    scale = _stored((high - low) / (form.highest - form.lowest), dtype)
    zero = (form.lowest - low / scale.float()).round().clamp(form.lowest, form.highest)
    return scale, zero


def _own_scales(size_NG: Tensor, shrink: Tensor | float, form: Form) -> Tensor:
    """Scales [N, G], float32, of groups of such a largest size, rounded to what `form.scales` can say."""
    if form.scales == "e8m0":
        # the sizes are rounded to one bit after the point first, as compressed-tensors does: 7 is nearer to 8 than to 4
        mantissa, exponent = torch.frexp(size_NG * shrink)
        scale = torch.ldexp(torch.ones_like(size_NG), exponent - 3 + (mantissa >= 0.875).int())
        return torch.where(size_NG == 0, 1.0, scale.clamp(2.0**-126, 2.0**126))
    if form.scales == "e4m3":
        whole = power_of_two(size_NG.amax() / FP4_MAX)
        scale = (size_NG * shrink / FP4_MAX * whole).to(torch.float8_e4m3fn).float()
        return torch.where(scale == 0, 1.0, scale) / whole
    rows = size_NG.shape[0]
    padded = torch.nn.functional.pad(size_NG * shrink, (0, 0, 0, -rows % BLOCK))
    scale = padded.view(-1, BLOCK, padded.shape[1]).amax(1) / FP8_MAX
    return torch.where(scale == 0, 1.0, scale).repeat_interleave(BLOCK, 0)[:rows]


def power_of_two(largest: Tensor) -> Tensor:
    """What scales up to `largest` are multiplied by so that they fill FP8: it changes no digit of them."""
    if not float(largest):
        return torch.ones(())
    whole = torch.exp2((FP8_MAX / largest.float()).log2().floor())
    return torch.where(largest * whole * 2 <= FP8_MAX, whole * 2, whole)


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to what is stored; one that would become 0 is 1, for a group that is zero all over."""
    rounded = scale.to(dtype)
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)


def encode(weight_NK: Tensor, form: Form, scale: Tensor, zero: Tensor | None) -> Encoded:
    """The nearest codes on a given grid, half to even; what lies outside is clamped."""
    steps = by_group(weight_NK, form) / scale.float().unsqueeze(-1)
    if form.floating:
        steps = steps.clamp(-form.largest, form.largest)
        codes = (steps if form.bits == 8 else _to_fp4(steps)).to(torch.float8_e4m3fn)
        return Encoded(codes.view(weight_NK.shape), scale, None)
    steps = steps.round_()
    if zero is not None:
        steps += zero.unsqueeze(-1)
    codes = steps.clamp_(form.lowest, form.highest).to(torch.int8)
    return Encoded(codes.view(weight_NK.shape), scale, None if zero is None else zero.to(torch.int8))


def _to_fp4(values: Tensor) -> Tensor:
    """The nearest numbers of E2M1, ties to the even one: steps of 1/2 up to 2, of 1 up to 4, of 2 up to 6."""
    size = values.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.copysign((size / step).round() * step, values)


def decode(encoded: Encoded) -> Tensor:
    """What the codes stand for: (code - zero) * scale, float32 [N, K]."""
    rows, columns = encoded.codes.shape
    steps = encoded.codes.float().view(rows, encoded.scale.shape[1], -1)
    if encoded.zero is not None:
        steps = steps - encoded.zero.float().unsqueeze(-1)
    return (steps * encoded.scale.float().unsqueeze(-1)).view(rows, columns)


def fake(weight_NK: Tensor, form: Form, scale: Tensor, zero: Tensor | None) -> Tensor:
    """`decode(encode(...))` without the codes in between, float32."""
    return decode(encode(weight_NK, form, scale, zero))


def count_clipped(encoded: Encoded, weight_NK: Tensor, form: Form) -> int:
    """How many weights lie more than half a step outside their grid."""
    if form.floating:
        outside = by_group(weight_NK.abs(), form) > form.largest * encoded.scale.float().unsqueeze(-1) * (1 + 2**-4)
        return int(outside.sum())
    steps = by_group(weight_NK, form) / encoded.scale.float().unsqueeze(-1)
    if encoded.zero is not None:
        steps = steps + encoded.zero.float().unsqueeze(-1)
    # a symmetric grid of 7.5 steps puts its largest weights exactly half a step outside, on purpose
    return int(((steps < form.lowest - 0.51) | (steps > form.highest + 0.51)).sum())


def round_activations(values: Tensor, floating: bool, group: int = 0) -> Tensor:
    """Activations as a runtime quantizes them, to 8 bits, integer or E4M3, and back. float32.

    One scale a token, or one for each `group` numbers of it.
    """
    if group:
        return round_activations(values.view(*values.shape[:-1], -1, group), floating).flatten(-2)
    limit = FP8_MAX if floating else 127.5
    scale = (values.abs().amax(-1, keepdim=True) / limit).clamp(min=1e-12)
    if floating:
        return (values / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * scale
    return (values / scale).round_().clamp_(-128, 127) * scale
