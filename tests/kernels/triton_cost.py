"""What the Triton kernels do, in closed form: operations, and bytes asked of the memory system.

For A active rows, V and H that are multiples of their tiles, every row active, no bias, no sums. Bytes are those of
tiles as programs load them, scalars left out; most of them come from the L2 cache, so they bound the memory's share
from above. A test counts the same under Triton's interpreter. Letters as in `triton_logits.py`; `itemsize` is that of
the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

from postmill.kernels.loss_scale_ce.triton_tuning import DZ_ROWS, Blocks

_INT64, _WORD = 8, 4  # a target; a count, a statistic or a factor


class Cost(NamedTuple):
    """Of one launch."""

    flops: int
    """Of matrix products alone: 2 a multiply-add."""
    loaded: int
    stored: int


def logits_cost(
    num_active: int, vocab_size: int, hidden_size: int, blocks: Blocks, itemsize: int, *, stored: bool = True
) -> Cost:
    """Forward pass, E stored or not."""
    tiles = (num_active // blocks.m) * (vocab_size // blocks.n)
    operands = (blocks.m + blocks.n) * hidden_size * itemsize
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        tiles * (operands + _INT64 * blocks.m),
        tiles * 2 * _WORD * blocks.m + stored * num_active * vocab_size * itemsize + _WORD * num_active,
    )


def dz_cost(num_active: int, vocab_size: int, hidden_size: int, blocks: Blocks, itemsize: int) -> Cost:
    """dz from logits made again, of one slice of the vocabulary."""
    tiles = (num_active // blocks.m) * (vocab_size // blocks.n)
    operands = (blocks.m + blocks.n) * hidden_size * itemsize
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        tiles * (operands + (5 * _WORD + _INT64) * blocks.m),
        num_active * vocab_size * itemsize,
    )


def reduce_cost(num_active: int, vocab_size: int, blocks: Blocks) -> Cost:
    """Reduction over the tiles of each row."""
    per_row = (vocab_size // blocks.n) * 2 * _WORD + _INT64 + _WORD
    return Cost(0, num_active * per_row, 5 * _WORD * num_active)


def stored_dz_cost(num_active: int, vocab_size: int, tile_n: int, itemsize: int) -> Cost:
    """dz from E, in place; `tile_n` is the n of the forward pass."""
    tiles = (num_active // DZ_ROWS) * (vocab_size // tile_n)
    num_bytes = num_active * vocab_size * itemsize
    return Cost(0, tiles * (5 * _WORD + _INT64) * DZ_ROWS + num_bytes, num_bytes)


def grad_hidden_cost(num_active: int, vocab_size: int, hidden_size: int, blocks: Blocks, itemsize: int) -> Cost:
    """dX from dz of one slice, every tile summed in one part."""
    tiles = (num_active // blocks.m) * (hidden_size // blocks.k)
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        tiles * (_INT64 * blocks.m + (blocks.m + blocks.k) * vocab_size * itemsize),
        num_active * hidden_size * itemsize,
    )


def grad_weight_cost(num_active: int, vocab_size: int, hidden_size: int, blocks: Blocks, itemsize: int) -> Cost:
    """dW from dz, in one chunk of rows or of one slice."""
    tiles = (vocab_size // blocks.n) * (hidden_size // blocks.k)
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        tiles * (blocks.n + blocks.k) * num_active * itemsize,
        vocab_size * hidden_size * itemsize,
    )
