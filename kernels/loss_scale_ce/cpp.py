"""The CPU backend: torch's BLAS for the matrix products, postmill._C for the fused passes between them.

Active rows are gathered first. The vocabulary is walked in tiles of a few MB that stay in the cache between a product
and the pass over its result; tiles are vocabulary-major (V, A), so the weight gradient is a plain product and the
passes vectorise over tokens. Two ways to a gradient:

- `fused`: for the loss, whose gradient is known up to a scalar in the forward pass. The logits of one block of rows are
  kept in an arena, then turned into dz tile by tile and spent: 6 A H V operations.
- `row_stats`, then `row_gradients`: for log-probs and entropies, whose gradient arrives later. Logits are made twice
  and nothing of size (V, A) is kept: 8 A H V.

Letters: T tokens, A active tokens (of a block), V vocabulary (of a tile), H hidden size. Inputs below float32 are
converted exactly, products and sums are float32, and each gradient is rounded once, at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from postmill.kernels.loss_scale_ce.reference import check_targets
from postmill.kernels.loss_scale_ce.terms import (
    Coefficients,
    Gradients,
    Head,
    LossShape,
    Needs,
    Rows,
    RowStats,
    accumulate_dtype,
    loss_coefficients,
)

ARENA_BYTES = 128 << 20
"""Room for the logits of 220 rows of 151,936. Each further block of rows reads and writes the weight gradient again, so
a large gradient gets an arena of half its size: at H 192, 64 MB cost 15% of the time and 320 MB save none, at H 1024
320 MB save 10%."""
TILE_BYTES = 4 << 20
"""One tile of logits; it shares the cache with its dz and its weights. Fastest of 2 to 32 MB (bench/LOG.md)."""
STREAM_ROWS = 8192
"""Most rows of a block where the logits are not kept."""


def native() -> ModuleType | None:
    """The compiled passes, or None where they are not built."""
    try:
        from postmill import _C  # type: ignore[attr-defined]  # built by CMake
    except ImportError:
        return None
    module: ModuleType = _C
    return module


@torch.no_grad()
def row_stats(hidden_TH: Tensor, head: Head, rows: Rows, *, want_sums: bool) -> RowStats:
    """`RowStats` without autograd; `want_sums` asks for `mean_T` and `expected_T`."""
    rows_A = rows.active_T.nonzero().squeeze(-1)
    stats_5T = torch.zeros(5, len(rows.targets_T), dtype=accumulate_dtype(hidden_TH.dtype))
    for rows_B in _even_split(rows_A, STREAM_ROWS):
        block = _Block(hidden_TH, head, rows.targets_T, rows_B)
        z = _buffer("logits", block.tile_rows * len(rows_B), block.dtype)
        for v0, v1 in block.tiles():
            block.logits(v0, _tile(z, v1 - v0, len(rows_B)), want_sums=want_sums)
        stats_5T[:, rows_B] = torch.stack(block.stats()).to(block.dtype)
    return RowStats(*stats_5T.unbind())


@torch.no_grad()
def row_gradients(
    hidden_TH: Tensor,
    head: Head,
    rows: Rows,
    lse_T: Tensor,
    coefficients: Coefficients,
    *,
    needs: Needs,
) -> Gradients:
    """Gradients for any function of the statistics, given the log-sum-exp of all logits (of all shards)."""
    rows_A = rows.active_T.nonzero().squeeze(-1)
    sums = _Sums(hidden_TH, head, needs)
    for rows_B in _even_split(rows_A, STREAM_ROWS):
        block = _Block(hidden_TH, head, rows.targets_T, rows_B)
        factors_5A = torch.stack([lse_T, *coefficients])[:, rows_B].double()
        factors_5A[1:] *= head.scale
        z, dz = (_buffer(name, block.tile_rows * len(rows_B), block.dtype) for name in ("logits", "gradient"))
        for v0, v1 in block.tiles():
            z_VA, dz_VA = _tile(z, v1 - v0, len(rows_B)), _tile(dz, v1 - v0, len(rows_B))
            block.logits(v0, z_VA, want_sums=False)
            block.gradient(v0, z_VA, factors_5A, dz_VA)
            sums.add(block, v0, dz_VA)
        sums.end_block(block)
    return sums.gradients()


@torch.no_grad()
def fused(hidden_TH: Tensor, head: Head, rows: Rows, shape: LossShape, needs: Needs) -> tuple[RowStats, Gradients]:
    """The statistics, and the gradients of `weighted_loss`, in one walk over the rows."""
    assert rows.weights_T is not None
    vocab_size = len(head.weight_VH)
    rows_A = rows.active_T.nonzero().squeeze(-1)
    dtype = accumulate_dtype(hidden_TH.dtype)
    stats_5T = torch.zeros(5, len(rows.targets_T), dtype=dtype)
    sums = _Sums(hidden_TH, head, needs)
    arena_bytes = max(ARENA_BYTES, head.weight_VH.numel() * dtype.itemsize // 2 if needs.weight else 0)
    for rows_B in _even_split(rows_A, max(16, arena_bytes // (vocab_size * dtype.itemsize))):
        block = _Block(hidden_TH, head, rows.targets_T, rows_B)
        arena_VA = _tile(_buffer("arena", vocab_size * len(rows_B), dtype), vocab_size, len(rows_B))
        for v0, v1 in block.tiles():
            block.logits(v0, arena_VA[v0:v1], want_sums=shape.label_smoothing != 0)
        stats = block.stats()
        stats_5T[:, rows_B] = torch.stack(stats).to(dtype)
        coefficients = loss_coefficients(stats.lse_T, rows.weights_T[rows_B].double(), shape, vocab_size)
        factors_5A = block.factors(stats, coefficients)
        dz = _buffer("gradient", block.tile_rows * len(rows_B), dtype)
        for v0, v1 in block.tiles():
            dz_VA = _tile(dz, v1 - v0, len(rows_B))
            block.gradient(v0, arena_VA[v0:v1], factors_5A, dz_VA)
            sums.add(block, v0, dz_VA)
        sums.end_block(block)
    return RowStats(*stats_5T.unbind()), sums.gradients()


class _Block:
    """Some active rows, gathered, and the running statistics of their logits."""

    def __init__(self, hidden_TH: Tensor, head: Head, targets_T: Tensor, rows_A: Tensor) -> None:
        self.dtype = accumulate_dtype(hidden_TH.dtype)
        self.rows_A = rows_A
        self.hidden_AH = hidden_TH[rows_A].to(self.dtype)
        self.targets_A = targets_T[rows_A].contiguous()
        self.head = head
        self.vocab_size = len(head.weight_VH)
        check_targets(self.targets_A, self.vocab_size)
        self.tile_rows = min(self.vocab_size, max(256, TILE_BYTES // (len(rows_A) * self.dtype.itemsize)), 16384)
        # max, sum of e, target, sum of z, sum of e z: see ext/cpp/loss_scale_ce.cpp
        self.state_5A = torch.zeros(5, len(rows_A), dtype=torch.float64)
        self.state_5A[0] = -torch.inf
        self.bias_V = None if head.bias_V is None else head.bias_V.to(self.dtype).contiguous()
        passes, suffix = native(), "f64" if self.dtype == torch.float64 else "f32"
        self.stats_pass = getattr(passes, f"loss_scale_ce_stats_{suffix}")
        self.gradient_pass = getattr(passes, f"loss_scale_ce_gradient_{suffix}")

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Bounds of the vocabulary tiles."""
        for v0 in range(0, self.vocab_size, self.tile_rows):
            yield v0, min(v0 + self.tile_rows, self.vocab_size)

    def weight(self, v0: int, v1: int) -> Tensor:
        """Rows of the head in the dtype of the sums; valid until the next call."""
        weight_VH = self.head.weight_VH[v0:v1]
        if weight_VH.dtype == self.dtype:
            return weight_VH
        return _tile(_buffer("weight", weight_VH.numel(), self.dtype), *weight_VH.shape).copy_(weight_VH)

    def logits(self, v0: int, z_VA: Tensor, *, want_sums: bool) -> None:
        """Fill z_VA with the logits of one tile and add them to the running statistics."""
        torch.mm(self.weight(v0, v0 + len(z_VA)), self.hidden_AH.t(), out=z_VA)
        self.stats_pass(
            z_VA.data_ptr(),
            len(z_VA),
            len(self.rows_A),
            v0,
            self.targets_A.data_ptr(),
            0 if self.bias_V is None else self.bias_V[v0:].data_ptr(),
            self.head.scale,
            self.head.softcap or 0.0,
            self.state_5A.data_ptr(),
            want_sums,
            torch.get_num_threads(),
        )

    def stats(self) -> RowStats:
        """The statistics once every tile has been added, in float64."""
        maximum, total, target, plain, product = self.state_5A
        return RowStats(maximum + total.log(), target, plain / self.vocab_size, product / total, maximum)

    def factors(self, stats: RowStats, coefficients: Coefficients) -> Tensor:
        """What the gradient pass multiplies by: p = exp(z - max) / sum, exact where float32 lse would not be."""
        inverse_sum_A = (stats.max_T - stats.lse_T).exp()
        a_T, e_T, b_T, c_T = (coefficient * self.head.scale for coefficient in coefficients)
        return torch.stack([stats.max_T, a_T * inverse_sum_A, e_T * inverse_sum_A, b_T, c_T])

    def gradient(self, v0: int, z_VA: Tensor, factors_5A: Tensor, dz_VA: Tensor) -> None:
        """Fill dz_VA with the gradient at the raw logits of one tile; factors are shift, a, e, b, c."""
        self.gradient_pass(
            z_VA.data_ptr(),
            len(z_VA),
            len(self.rows_A),
            v0,
            self.targets_A.data_ptr(),
            factors_5A.data_ptr(),
            self.head.softcap or 0.0,
            bool(factors_5A[2].any()),
            dz_VA.data_ptr(),
            torch.get_num_threads(),
        )


class _Sums:
    """The gradients as they add up over tiles and blocks."""

    def __init__(self, hidden_TH: Tensor, head: Head, needs: Needs) -> None:
        self.needs, self.head = needs, head
        self.hidden_dtype, dtype = hidden_TH.dtype, accumulate_dtype(hidden_TH.dtype)
        self.hidden_TH = torch.zeros(hidden_TH.shape if needs.hidden else 0, dtype=dtype)
        self.weight_VH = torch.empty(head.weight_VH.shape if needs.weight else 0, dtype=dtype)
        self.bias_V = torch.zeros(len(head.weight_VH) if needs.bias else 0, dtype=dtype)
        self.is_first_block = True
        self.block_AH = self.hidden_TH[:0]

    def add(self, block: _Block, v0: int, dz_VA: Tensor) -> None:
        v1 = v0 + len(dz_VA)
        if self.needs.hidden:
            if v0 == 0:
                self.block_AH = torch.zeros_like(block.hidden_AH)
            self.block_AH.addmm_(dz_VA.t(), block.weight(v0, v1))
        if self.needs.weight:
            # The first block overwrites: a zeroed gradient would be written, and read, once more than needed.
            self.weight_VH[v0:v1].addmm_(dz_VA, block.hidden_AH, beta=0 if self.is_first_block else 1)
        if self.needs.bias:
            self.bias_V[v0:v1] += dz_VA.sum(1)

    def end_block(self, block: _Block) -> None:
        if self.needs.hidden:
            self.hidden_TH[block.rows_A] = self.block_AH
        self.is_first_block = False

    def gradients(self) -> Gradients:
        if self.is_first_block:
            self.weight_VH.zero_()
        weight_dtype = self.head.weight_VH.dtype
        return Gradients(
            self.hidden_TH.to(self.hidden_dtype), self.weight_VH.to(weight_dtype), self.bias_V.to(weight_dtype)
        )


def _even_split(rows_A: Tensor, most: int) -> list[Tensor]:
    """Blocks of at most `most` rows, equal to within one cache line of tokens."""
    if not len(rows_A):
        return []
    num_blocks = -(-len(rows_A) // most)
    size = min(most, -(-len(rows_A) // num_blocks // 16) * 16)
    return list(torch.split(rows_A, size))


_buffers = threading.local()
"""Scratch that outlives a call, one set a thread: fresh pages for 300 MB cost more than the passes over them."""


def _buffer(name: str, numel: int, dtype: torch.dtype) -> Tensor:
    """At least `numel` elements, uninitialised; the same memory for the same name until a larger one is asked for."""
    raw: Tensor | None = getattr(_buffers, name, None)
    if raw is None or raw.numel() < numel * dtype.itemsize:
        setattr(_buffers, name, None)
        raw = torch.empty(numel * dtype.itemsize, dtype=torch.uint8)
        setattr(_buffers, name, raw)
    return raw[: numel * dtype.itemsize].view(dtype)


def _tile(buffer: Tensor, num_rows: int, num_columns: int) -> Tensor:
    return buffer[: num_rows * num_columns].view(num_rows, num_columns)
