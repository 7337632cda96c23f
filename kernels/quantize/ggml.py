"""Blocks of GGUF's types: 32 or 256 neighbouring weights of a row with their scales, as llama.cpp's files hold them.

Bytes are those of ggml's own reference for F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1; for the k-quants see `ggml_k`,
for IQ4_NL and IQ4_XS `ggml_iq`.
Source: ggml-quants.c of llama.cpp, <https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c>.
Letters: B blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from postmill.kernels.quantize import ggml_iq, ggml_k

_CHUNK = 1 << 18
"""Weights encoded at once, so that what is in between stays in the cache."""


class Block(NamedTuple):
    """A type. `encode`: float32 [B, size] to uint8 [B, num_bytes]; `decode`: the other way."""

    size: int
    num_bytes: int
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def encode_rows(values: Tensor, kind: str) -> Tensor:
    """Rows of float32 as bytes: uint8 [..., bytes of a row]. The type's block divides a row: the caller checked it."""
    block = BLOCKS[kind]
    blocks = values.reshape(-1, block.size)
    step = max(1, _CHUNK // block.size)
    parts = [block.encode(blocks[start : start + step]) for start in range(0, len(blocks), step)]
    return torch.cat(parts).view(*values.shape[:-1], -1)


def decode_rows(raw: Tensor, kind: str) -> Tensor:
    """What the bytes of rows stand for: float32 [..., columns]."""
    block = BLOCKS[kind]
    return block.decode(raw.reshape(-1, block.num_bytes)).view(*raw.shape[:-1], -1)


def as_bytes(values: Tensor) -> Tensor:
    """Numbers as their bytes: [B, n] to uint8 [B, n * size of one]."""
    return values.contiguous().view(torch.uint8)


def as_halves(raw: Tensor) -> Tensor:
    """Bytes of float16 numbers as float32."""
    return raw.contiguous().view(torch.float16).float()


def _inverse(step: Tensor) -> Tensor:
    return torch.where(step == 0, 0.0, 1.0 / step)


def _plain(dtype: torch.dtype) -> Block:
    size = dtype.itemsize
    return Block(1, size, lambda x: as_bytes(x.to(dtype)), lambda raw: raw.contiguous().view(dtype).float())


def _nibbles(codes: Tensor) -> Tensor:
    """Codes of 32 weights to 16 bytes: the first half in the low bits, the second half in the high ones."""
    return codes[:, :16] & 15 | (codes[:, 16:] << 4)


def _halves_of(raw: Tensor) -> Tensor:
    return torch.cat([raw & 15, raw >> 4], 1)


def _q8_0(x: Tensor) -> Tensor:
    step = x.abs().amax(1, keepdim=True) / 127
    steps = x * _inverse(step)
    size = steps.abs()
    whole = size.floor()
    codes = steps.sign() * (whole + (2 * (size - whole)).floor())  # half away from zero
    return torch.cat([as_bytes(step.half()), as_bytes(codes.to(torch.int8))], 1)


def _q8_0_back(raw: Tensor) -> Tensor:
    return raw[:, 2:].contiguous().view(torch.int8).float() * as_halves(raw[:, :2])


def _from_largest(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step and codes of a grid on which the weight of the largest size, with its sign, is the lowest code."""
    half = 1 << (bits - 1)
    step = x.gather(1, x.abs().argmax(1, keepdim=True)) / -half
    codes = (x * _inverse(step) + (half + 0.5)).trunc().clamp(0, 2 * half - 1).to(torch.uint8)
    return step, codes


def _from_lowest(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Step, lowest weight and codes of a grid from the lowest weight to the highest."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    step = (high - low) / ((1 << bits) - 1)
    codes = ((x - low) * _inverse(step) + 0.5).trunc().clamp(0, (1 << bits) - 1).to(torch.uint8)
    return step, low, codes


def _fifth(codes: Tensor) -> Tensor:
    """The fifth bits of 32 codes, in four bytes."""
    bits = (codes >> 4).view(-1, 4, 8) << torch.arange(8, dtype=torch.uint8)
    return bits.sum(-1, dtype=torch.uint8)


def _with_fifth(raw: Tensor, high: Tensor) -> Tensor:
    bits = (high.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    return _halves_of(raw) | (bits.flatten(1) << 4)


def _q4_0(x: Tensor) -> Tensor:
    step, codes = _from_largest(x, 4)
    return torch.cat([as_bytes(step.half()), _nibbles(codes)], 1)


def _q4_0_back(raw: Tensor) -> Tensor:
    return (_halves_of(raw[:, 2:]).float() - 8) * as_halves(raw[:, :2])


def _q4_1(x: Tensor) -> Tensor:
    step, low, codes = _from_lowest(x, 4)
    return torch.cat([as_bytes(step.half()), as_bytes(low.half()), _nibbles(codes)], 1)


def _q4_1_back(raw: Tensor) -> Tensor:
    return _halves_of(raw[:, 4:]).float() * as_halves(raw[:, :2]) + as_halves(raw[:, 2:4])


def _q5_0(x: Tensor) -> Tensor:
    step, codes = _from_largest(x, 5)
    return torch.cat([as_bytes(step.half()), _fifth(codes), _nibbles(codes)], 1)


def _q5_0_back(raw: Tensor) -> Tensor:
    return (_with_fifth(raw[:, 6:], raw[:, 2:6]).float() - 16) * as_halves(raw[:, :2])


def _q5_1(x: Tensor) -> Tensor:
    step, low, codes = _from_lowest(x, 5)
    return torch.cat([as_bytes(step.half()), as_bytes(low.half()), _fifth(codes), _nibbles(codes)], 1)


def _q5_1_back(raw: Tensor) -> Tensor:
    return _with_fifth(raw[:, 8:], raw[:, 4:8]).float() * as_halves(raw[:, :2]) + as_halves(raw[:, 2:4])


BLOCKS = {
    "f32": _plain(torch.float32),
    "f16": _plain(torch.float16),
    "bf16": _plain(torch.bfloat16),
    "q8_0": Block(32, 34, _q8_0, _q8_0_back),
    "q4_0": Block(32, 18, _q4_0, _q4_0_back),
    "q4_1": Block(32, 20, _q4_1, _q4_1_back),
    "q5_0": Block(32, 22, _q5_0, _q5_0_back),
    "q5_1": Block(32, 24, _q5_1, _q5_1_back),
    "q2_k": Block(256, 84, ggml_k.q2, ggml_k.q2_back),
    "q3_k": Block(256, 110, ggml_k.q3, ggml_k.q3_back),
    "q4_k": Block(256, 144, ggml_k.q4, ggml_k.q4_back),
    "q5_k": Block(256, 176, ggml_k.q5, ggml_k.q5_back),
    "q6_k": Block(256, 210, ggml_k.q6, ggml_k.q6_back),
    "iq4_nl": Block(32, 18, ggml_iq.iq4_nl, ggml_iq.iq4_nl_back),
    "iq4_xs": Block(256, 136, ggml_iq.iq4_xs, ggml_iq.iq4_xs_back),
}
"""Types by name."""
