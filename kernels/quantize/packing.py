"""Codes as bits of 32-bit words: the three arrangements that files use, and back.

All hold 32 / bits codes a word, the first in the lowest bits, counted from zero (code + half the range). They differ in
the axis that words run along and, for AWQ, in the order of the eight codes of a word.
"""

import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbours lies in the first, second, ... four bits of a word: so that two lie sixteen bits apart."""


def pack_rows(codes_NK: Tensor, bits: int, order: tuple[int, ...] = ()) -> Tensor:
    """int8 [N, K], signed codes, to int32 [N, ceil(K * bits / 32)]. `bits` divides 32; `order` permutes each word."""
    per_word = 32 // bits
    rows, columns = codes_NK.shape
    whole = -(-columns // per_word) * per_word
    # the padding of a last word is zero bits, as the libraries leave it
    padded = torch.zeros(rows, whole, dtype=torch.int64)
    padded[:, :columns] = codes_NK.to(torch.int64) + (1 << (bits - 1))
    words = padded.view(rows, -1, per_word)
    if order:
        words = words[:, :, list(order)]
    packed = (words << (torch.arange(per_word) * bits)).sum(-1)
    return packed.to(torch.int32)  # the highest bit becomes the sign: int64 to int32 keeps the low 32 bits


def unpack_rows(words: Tensor, bits: int, num_columns: int, order: tuple[int, ...] = ()) -> Tensor:
    """The inverse: int8 [N, num_columns]."""
    per_word = 32 // bits
    codes = words.to(torch.int64).unsqueeze(-1) >> (torch.arange(per_word, device=words.device) * bits)
    codes &= (1 << bits) - 1
    if order:
        codes = codes[:, :, [order.index(place) for place in range(per_word)]]
    return (codes.flatten(1)[:, :num_columns] - (1 << (bits - 1))).to(torch.int8)


_FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def pack_fp4(codes_NK: Tensor) -> Tensor:
    """Numbers of E2M1 (in any dtype that holds them) to uint8 [N, K / 2]: sign and place in its list, the first low."""
    values = codes_NK.float()
    codes = torch.searchsorted(_FP4, values.abs().contiguous()).to(torch.uint8) | (
        values.signbit().to(torch.uint8) << 3
    )
    return codes[:, ::2] | codes[:, 1::2] << 4


def unpack_fp4(packed: Tensor) -> Tensor:
    """The inverse: float8_e4m3fn [N, K]."""
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1).long()
    values = _FP4.to(packed.device)[codes & 7]
    return torch.where(codes > 7, -values, values).to(torch.float8_e4m3fn)
