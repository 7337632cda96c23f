"""The GPU backend: lays out buffers and launches the kernels of `triton_kernels.py`. No call waits for the device.

Active rows are gathered to the front on the device. Two ways to a gradient, as on the CPU:

- stored: `fused` keeps E = exp(z - max of its tile), in the inputs' dtype, for as many rows at a time as STORE_BYTES
  holds, and the two gradient products make dz from it as they load it: 6 A H V operations.
- recomputed: logits are made again, slice by slice of the vocabulary, into a buffer of at most SLICE_BYTES: 8 A H V.
  `row_gradients` always does this, and `fused` where there is a soft cap (its derivative needs z, not E) or where
  STORE_BYTES holds too few rows to be worth a pass over the head's gradient.

Letters: T tokens, R rows of a buffer, V vocabulary, N a slice of it, H hidden size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from postmill.kernels.loss_scale_ce import triton_kernels as kernels
from postmill.kernels.loss_scale_ce.terms import (
    Coefficients,
    Gradients,
    Head,
    LossShape,
    Needs,
    Rows,
    RowStats,
    loss_coefficients,
)

STORE_BYTES = 1 << 30
"""For E: 3,456 rows of 151,936 in bfloat16. Each further chunk of rows reads and writes the head's gradient again."""
SLICE_BYTES = 256 << 20
"""For dz of all rows and a slice of the vocabulary, where E is not stored."""
REDUCE_ROWS = 128
"""Rows of one program of the reduction over tiles."""
FEWEST_STORED_ROWS = 512
"""Below this many rows a chunk, the traffic of the head's gradient costs more than making the logits twice."""


class Blocks(NamedTuple):
    """Tile shapes of one kernel."""

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int


class Tuning(NamedTuple):
    """Tile shapes for one generation of GPUs; the n of both logits is a multiple of the other two n."""

    logits: Blocks
    """A forward pass that needs z only to make E."""
    wide_logits: Blocks
    """A pass over logits that holds z and something made of it at once: sums for smoothing or entropy, a cap, dz."""
    hidden: Blocks
    """k is the width in H."""
    weight: Blocks
    """k is the width in H."""


TUNINGS = {
    # Chosen for what compiles without spills within the shared memory of the chip; not yet timed on one.
    "hopper": Tuning(
        Blocks(128, 256, 64, 8, 3), Blocks(128, 128, 64, 8, 4), Blocks(128, 64, 256, 8, 3), Blocks(64, 128, 256, 8, 3)
    ),
    "blackwell": Tuning(
        Blocks(128, 256, 64, 8, 3), Blocks(128, 128, 64, 8, 4), Blocks(128, 64, 128, 8, 4), Blocks(64, 128, 128, 8, 4)
    ),
    "ampere": Tuning(
        Blocks(128, 128, 32, 8, 3), Blocks(128, 128, 32, 8, 3), Blocks(128, 32, 128, 8, 3), Blocks(32, 128, 128, 8, 3)
    ),
    "float32": Tuning(
        Blocks(128, 64, 32, 8, 2), Blocks(128, 64, 32, 8, 2), Blocks(64, 32, 64, 8, 2), Blocks(32, 64, 128, 8, 2)
    ),
}


def tuning_for(dtype: torch.dtype, capability: int) -> Tuning:
    """Tile shapes by input dtype and compute capability (80, 90, 100, ...); 120 has the shared memory of Ampere."""
    if dtype == torch.float32:
        return TUNINGS["float32"]
    return TUNINGS[{90: "hopper", 100: "blackwell", 103: "blackwell"}.get(capability, "ampere")]


def row_stats(hidden_TH: Tensor, head: Head, rows: Rows, *, want_sums: bool) -> RowStats:
    """`RowStats` without autograd; `want_sums` asks for `mean_T` and `expected_T`."""
    batch = _Batch(hidden_TH, head, rows)
    stats_5T, _ = batch.forward(0, batch.num_tokens, stored=None, want_sums=want_sums)
    return RowStats(*batch.spread(stats_5T).unbind())


def row_gradients(
    hidden_TH: Tensor, head: Head, rows: Rows, lse_T: Tensor, coefficients: Coefficients, *, needs: Needs
) -> Gradients:
    """Gradients for any function of the statistics, given the log-sum-exp of all logits (of all shards)."""
    batch = _Batch(hidden_TH, head, rows)
    gathered = Coefficients(*(coefficient[batch.gather_T] for coefficient in coefficients))
    return _recomputed(batch, batch.factors(0, lse_T[batch.gather_T], gathered), needs)


def fused(hidden_TH: Tensor, head: Head, rows: Rows, shape: LossShape, needs: Needs) -> tuple[RowStats, Gradients]:
    """The statistics, and the gradients of `weighted_loss`, in one call."""
    assert rows.weights_T is not None
    batch = _Batch(hidden_TH, head, rows)
    weights_T, want_sums = rows.weights_T[batch.gather_T], shape.label_smoothing != 0
    chunk_rows = STORE_BYTES // (batch.vocab_size * batch.dtype.itemsize) // 128 * 128
    if head.softcap is not None or chunk_rows < min(batch.num_tokens, FEWEST_STORED_ROWS):
        stats_5T, _ = batch.forward(0, batch.num_tokens, stored=None, want_sums=want_sums)
        coefficients = loss_coefficients(stats_5T[0], weights_T, shape, batch.vocab_size)
        gradients = _recomputed(batch, batch.factors(0, stats_5T[0], coefficients), needs)
    else:
        stats_5T, gradients = _stored(batch, weights_T, shape, needs, min(chunk_rows, batch.num_tokens))
    return RowStats(*batch.spread(stats_5T).unbind()), gradients


def _stored(
    batch: _Batch, weights_T: Tensor, shape: LossShape, needs: Needs, chunk_rows: int
) -> tuple[Tensor, Gradients]:
    """Statistics in gathered order, and gradients of the loss, chunk by chunk of rows through E."""
    want_sums = shape.label_smoothing != 0
    stats_5T = batch.empty(5, batch.num_tokens)
    store_RV = batch.empty(chunk_rows, batch.vocab_size, dtype=batch.dtype)
    starts = range(0, batch.num_tokens, chunk_rows)
    # The head's gradient is summed over chunks in float32; one chunk needs no sum.
    sums = batch.gradients(needs, weight_dtype=batch.dtype if len(starts) == 1 else torch.float32)
    for first in starts:
        last = min(first + chunk_rows, batch.num_tokens)
        stats_5R, tops_NR = batch.forward(first, last - first, stored=store_RV, want_sums=want_sums)
        stats_5T[:, first:last] = stats_5R
        coefficients = loss_coefficients(stats_5R[0], weights_T[first:last], shape, batch.vocab_size)
        factors = batch.factors(first, stats_5R[0], coefficients)
        tile_n = batch.logits_blocks(is_wide=want_sums).n
        dz = _Dz(store_RV, batch.targets_T[first:last], factors, tops_NR, tile_n)
        if needs.hidden:
            batch.add_hidden(dz, first, batch.weight_VH, sums.hidden_TH[first:last], add=False)
        if needs.weight or needs.bias:
            batch.add_weight(dz, first, needs, sums, add=first > 0)
    return stats_5T, batch.finish(sums, needs)


def _recomputed(batch: _Batch, factors: _Factors, needs: Needs) -> Gradients:
    """Gradients slice by slice of the vocabulary, each from logits made again."""
    per_entry = max(batch.num_tokens, 1) * batch.dtype.itemsize
    slice_size = min(batch.vocab_size, max(SLICE_BYTES // per_entry // 256 * 256, 256))
    dz_RN = batch.empty(batch.num_tokens * slice_size, dtype=batch.dtype)
    starts = range(0, batch.vocab_size, slice_size)
    sums = batch.gradients(needs, hidden_dtype=batch.dtype if len(starts) == 1 else torch.float32)
    for v0 in starts:
        v1 = min(v0 + slice_size, batch.vocab_size)
        # Outside the slice, even below it, a target is -1 or out of reach: it matches no entry.
        dz = _Dz(dz_RN, batch.targets_T - v0, factors, None)
        batch.make_dz(dz, v0, v1)
        if needs.hidden:
            batch.add_hidden(dz, 0, batch.weight_VH[v0:v1], sums.hidden_TH, add=v0 > 0)
        if needs.weight or needs.bias:
            part = sums._replace(
                weight_VH=sums.weight_VH[v0:v1] if needs.weight else sums.weight_VH,
                bias_V=sums.bias_V[v0:v1] if needs.bias else sums.bias_V,
            )
            batch.add_weight(dz, 0, needs, part, add=False, num_entries=v1 - v0)
    return batch.finish(sums, needs)


class _Factors(NamedTuple):
    factors_5R: Tensor
    """lse, and a, e, b, c over `unit`; zeros past the last active row."""
    unit: Tensor
    """(1), the largest magnitude of a, e, b and c."""


class _Dz(NamedTuple):
    """dz of R rows and N entries, written out, or E and what makes dz of it."""

    buffer: Tensor
    targets_R: Tensor
    factors: _Factors
    tops_NR: Tensor | None
    """The maximum of each tile of `tile_n` entries, where the buffer holds E."""
    tile_n: int = 1


class _Batch:
    """The active rows, gathered on the device, and the launches over them."""

    def __init__(self, hidden_TH: Tensor, head: Head, rows: Rows) -> None:
        self.head, self.dtype, self.device = head, hidden_TH.dtype, hidden_TH.device
        self.weight_VH = head.weight_VH.contiguous()
        self.vocab_size, self.hidden_size = self.weight_VH.shape
        self.num_tokens = len(rows.targets_T)
        self.tuning = tuning_for(self.dtype, _capability(self.device))
        # Active rows first, in order; the filler behind them gathers row 0 and scatters to a row that is cut off.
        every_T = torch.arange(self.num_tokens, device=self.device)
        slot_T = torch.where(rows.active_T, rows.active_T.cumsum(0) - 1, self.num_tokens)
        gather = torch.zeros(self.num_tokens + 1, dtype=torch.int64, device=self.device)
        self.gather_T = gather.scatter_(0, slot_T, every_T)[: self.num_tokens]
        self.count = rows.active_T.sum(dtype=torch.int32).reshape(1)
        self.is_filled_T = every_T < self.count
        self.scatter_T = torch.where(self.is_filled_T, self.gather_T, self.num_tokens)
        self.hidden_TH = hidden_TH[self.gather_T]
        self.targets_T = rows.targets_T[self.gather_T]

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def spread(self, values_KT: Tensor) -> Tensor:
        """From gathered order back to the caller's along the last dimension, 0 on skipped rows."""
        out = values_KT.new_zeros(len(values_KT), self.num_tokens + 1)
        return out.index_copy_(1, self.scatter_T, values_KT)[:, : self.num_tokens]

    def factors(self, first: int, lse_R: Tensor, coefficients: Coefficients) -> _Factors:
        # Past the last active row lie uninitialised statistics: they must not reach the maximum.
        is_filled_R = self.is_filled_T[first : first + len(lse_R)]
        factors_5R = torch.where(is_filled_R, torch.stack([lse_R, *coefficients]).float(), 0)
        factors_5R[1:] *= self.head.scale
        unit = factors_5R[1:].abs().max().reshape(1)
        factors_5R[1:] /= torch.where(unit == 0, 1, unit)
        return _Factors(factors_5R, unit)

    def options(self, blocks: Blocks) -> dict[str, Any]:
        """What every product is launched with."""
        is_tf32 = self.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
        return {
            "H": self.hidden_size,
            "UPCAST": self.dtype == torch.bfloat16 and self.device.type == "cpu",
            # tf32x3 is float32 on the matrix units, to about 2^-21; below float32 the setting is not read.
            "PRECISION": "tf32" if is_tf32 else "tf32x3",
            "num_warps": blocks.num_warps,
            "num_stages": blocks.num_stages,
        }

    def logits_blocks(self, *, is_wide: bool) -> Blocks:
        return self.tuning.wide_logits if is_wide or self.head.softcap is not None else self.tuning.logits

    def logits_options(self, blocks: Blocks) -> dict[str, Any]:
        return self.options(blocks) | {
            "BLOCK_M": blocks.m,
            "BLOCK_N": blocks.n,
            "BLOCK_K": blocks.k,
            "GROUP_M": 32,
            "HAS_BIAS": self.head.bias_V is not None,
            "HAS_CAP": self.head.softcap is not None,
        }

    def forward(self, first: int, num_rows: int, *, stored: Tensor | None, want_sums: bool) -> tuple[Tensor, Tensor]:
        """(5, R) statistics of the gathered rows [first, first + num_rows), and the (N, R) maxima of their tiles.

        E of the rows goes to `stored`, if given.
        """
        blocks, last = self.logits_blocks(is_wide=want_sums), first + num_rows
        num_tiles = triton.cdiv(self.vocab_size, blocks.n)
        partials = self.empty(4, num_tiles, num_rows)
        target_R = torch.zeros(num_rows, device=self.device)
        kernels.logits_kernel[(triton.cdiv(num_rows, blocks.m) * num_tiles,)](
            self.hidden_TH[first:last],
            self.weight_VH,
            self.head.bias_V,
            self.targets_T[first:last],
            self.count,
            partials,
            target_R,
            stored,
            first,
            num_rows,
            self.vocab_size,
            float(self.head.scale),
            float(self.head.softcap or 1.0),
            WANT_SUMS=want_sums,
            STORE=stored is not None,
            **self.logits_options(blocks),
        )
        stats_5R = self.empty(5, num_rows)
        kernels.reduce_kernel[(triton.cdiv(num_rows, REDUCE_ROWS),)](
            partials,
            self.targets_T[first:last],
            target_R,
            self.count,
            stats_5R,
            first,
            num_rows,
            num_tiles,
            self.vocab_size,
            BLOCK_M=REDUCE_ROWS,
            WANT_SUMS=want_sums,
        )
        return stats_5R, partials[0]

    def make_dz(self, dz: _Dz, v0: int, v1: int) -> None:
        """Write dz of all rows and the entries [v0, v1) to its buffer."""
        blocks = self.logits_blocks(is_wide=True)
        grid = triton.cdiv(self.num_tokens, blocks.m) * triton.cdiv(v1 - v0, blocks.n)
        kernels.dz_kernel[(grid,)](
            self.hidden_TH,
            self.weight_VH[v0:v1],
            None if self.head.bias_V is None else self.head.bias_V[v0:v1],
            dz.targets_R,
            self.count,
            dz.factors.factors_5R,
            dz.buffer,
            self.num_tokens,
            v1 - v0,
            float(self.head.scale),
            float(self.head.softcap or 1.0),
            **self.logits_options(blocks),
        )

    def add_hidden(self, dz: _Dz, first: int, weight_NH: Tensor, out_RH: Tensor, *, add: bool) -> None:
        """out = dz @ weight, or added to it, for the gathered rows from `first` on."""
        blocks = self.tuning.hidden
        grid = triton.cdiv(len(out_RH), blocks.m) * triton.cdiv(self.hidden_size, blocks.k)
        kernels.grad_hidden_kernel[(grid,)](
            dz.buffer,
            weight_NH,
            dz.targets_R,
            self.count,
            dz.factors.factors_5R,
            dz.tops_NR,
            dz.factors.unit,
            out_RH,
            first,
            len(out_RH),
            len(weight_NH),
            **self.gradient_options(blocks, dz, add=add),
        )

    def add_weight(
        self, dz: _Dz, first: int, needs: Needs, sums: Gradients, *, add: bool, num_entries: int | None = None
    ) -> None:
        """The head's gradient dz^T @ hidden, and the bias's, or added to them, from gathered rows from `first` on."""
        blocks = self.tuning.weight
        num_entries = self.vocab_size if num_entries is None else num_entries
        num_rows = len(dz.targets_R)
        grid = triton.cdiv(num_entries, blocks.n) * (triton.cdiv(self.hidden_size, blocks.k) if needs.weight else 1)
        kernels.grad_weight_kernel[(grid,)](
            dz.buffer,
            self.hidden_TH[first : first + num_rows],
            dz.targets_R,
            self.count,
            dz.factors.factors_5R,
            dz.tops_NR,
            dz.factors.unit,
            sums.weight_VH,
            sums.bias_V,
            first,
            num_rows,
            num_entries,
            WANT_WEIGHT=needs.weight,
            WANT_BIAS=needs.bias,
            **self.gradient_options(blocks, dz, add=add),
        )

    def gradient_options(self, blocks: Blocks, dz: _Dz, *, add: bool) -> dict[str, Any]:
        return self.options(blocks) | {
            "BLOCK_M": blocks.m,
            "BLOCK_N": blocks.n,
            "BLOCK_H": blocks.k,
            "TILE_N": dz.tile_n,
            "STORED": dz.tops_NR is not None,
            "ADD": add,
        }

    def gradients(
        self, needs: Needs, *, hidden_dtype: torch.dtype | None = None, weight_dtype: torch.dtype | None = None
    ) -> Gradients:
        """Room for the gradients, uninitialised, hidden's in gathered order."""
        return Gradients(
            self.empty(*(self.hidden_TH.shape if needs.hidden else (0,)), dtype=hidden_dtype or self.dtype),
            self.empty(*(self.weight_VH.shape if needs.weight else (0,)), dtype=weight_dtype or self.dtype),
            self.empty(self.vocab_size if needs.bias else 0),
        )

    def finish(self, sums: Gradients, needs: Needs) -> Gradients:
        """In the caller's order and dtypes."""
        hidden_TH = sums.hidden_TH.to(self.dtype)
        if needs.hidden:
            out = hidden_TH.new_zeros(self.num_tokens + 1, self.hidden_size)
            hidden_TH = out.index_copy_(0, self.scatter_T, hidden_TH)[: self.num_tokens]
        return Gradients(hidden_TH, sums.weight_VH.to(self.dtype), sums.bias_V.to(self.dtype))


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
