"""What the Triton kernels do, in closed form: operations, and bytes asked of the memory system.

For A active rows, V and H that are multiples of their tiles, every row active, no bias, no sums. Bytes are those of
tiles as programs load them; most of them come from the L2 cache, so they bound the memory's share from above. A test
counts the same under Triton's interpreter. Letters as in `triton_kernels.py`; `itemsize` is that of the inputs.
"""

from __future__ import annotations

from typing import NamedTuple

from postmill.kernels.loss_scale_ce.triton_host import REDUCE_ROWS, Blocks

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
    programs = (num_active // blocks.m) * (vocab_size // blocks.n)
    operands = (blocks.m + blocks.n) * hidden_size * itemsize
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        programs * (_WORD + operands + _INT64 * blocks.m),
        programs * 2 * _WORD * blocks.m + stored * num_active * vocab_size * itemsize + _WORD * num_active,
    )


def dz_cost(num_active: int, vocab_size: int, hidden_size: int, blocks: Blocks, itemsize: int) -> Cost:
    """dz from logits made again, of one slice of the vocabulary."""
    programs = (num_active // blocks.m) * (vocab_size // blocks.n)
    operands = (blocks.m + blocks.n) * hidden_size * itemsize
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        programs * (_WORD + operands + (5 * _WORD + _INT64) * blocks.m),
        num_active * vocab_size * itemsize,
    )


def reduce_cost(num_active: int, vocab_size: int, blocks: Blocks) -> Cost:
    """Reduction over the tiles of each row."""
    programs = -(-num_active // REDUCE_ROWS)
    per_row = (vocab_size // blocks.n) * 2 * _WORD + _INT64 + _WORD
    return Cost(0, programs * _WORD + num_active * per_row, 5 * _WORD * num_active)


def grad_hidden_cost(
    num_active: int, vocab_size: int, hidden_size: int, blocks: Blocks, itemsize: int, *, stored: bool = True
) -> Cost:
    """dX from E, or from dz of one slice."""
    programs = (num_active // blocks.m) * (hidden_size // blocks.k)
    step = (blocks.m + blocks.k) * blocks.n * itemsize + stored * (5 * _WORD + _INT64) * blocks.m
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        programs * (2 * _WORD + (vocab_size // blocks.n) * step),
        num_active * hidden_size * itemsize,
    )


def grad_weight_cost(
    num_active: int, vocab_size: int, hidden_size: int, blocks: Blocks, itemsize: int, *, stored: bool = True
) -> Cost:
    """dW from E, in one chunk of rows, or from dz of one slice."""
    programs = (vocab_size // blocks.n) * (hidden_size // blocks.k)
    step = (blocks.n + blocks.k) * blocks.m * itemsize + stored * (5 * _WORD + _INT64) * blocks.m
    return Cost(
        2 * num_active * hidden_size * vocab_size,
        programs * (2 * _WORD + (num_active // blocks.m) * step),
        vocab_size * hidden_size * itemsize,
    )
