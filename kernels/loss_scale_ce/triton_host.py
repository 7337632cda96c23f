"""The GPU backend: lays out buffers and launches the kernels of `triton_kernels.py`. No call waits for the device.

Active rows are gathered to the front on the device. Two ways to a gradient, as on the CPU:

- stored: `fused` keeps E = exp(z - max of its tile), in the inputs' dtype, for as many rows at a time as STORE_BYTES
  holds, and makes dz of it in place once the sums of its rows are known: 6 A H V operations.
- recomputed: logits are made again, slice by slice of the vocabulary, into a buffer of at most SLICE_BYTES: 8 A H V.
  `row_gradients` always does this, and `fused` where there is a soft cap (its derivative needs z, not E) or where
  STORE_BYTES holds too few rows to be worth a pass over the head's gradient.

Letters: T tokens, R rows of a buffer, V vocabulary, N a slice of it, H hidden size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

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
"""For E: 3,456 rows of 151,936 in bfloat16. Each further chunk of rows reads and writes the head's gradient again, in
float32, so E may grow by as much as that float32 copy would take if one chunk is enough then."""
SLICE_BYTES = 256 << 20
"""For dz of all rows and a slice of the vocabulary, where E is not stored."""
GROUP_M = 16
"""Row tiles that share a tile of the head while it is in the L2 cache."""
REDUCE_ROWS, REDUCE_TILES = 16, 64
"""Rows of one program of the reduction over tiles, and tiles it takes at once."""
DZ_ROWS, DZ_PROGRAMS = 16, 8
"""Rows of one program, at a time, that makes dz of E, and programs a multiprocessor."""
MAX_PARTS, MAX_ROUNDS, JOIN_ROWS = 8, 8, 16
"""Parts that a tile of dX may be summed in; rounds of the GPU's multiprocessors that all parts may fill; rows of one
program that joins them."""
BIAS_BLOCK = 64
"""Rows, at a time, and entries of one program of the bias's gradient."""
SCALE_BLOCK = 4096
"""Entries of one program, at a time, of the scaling of gradients."""
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
    """Tile shapes for one generation of GPUs; the m of `wide_logits` is a multiple of that of `weight`."""

    logits: Blocks
    """A forward pass that needs z only to make E."""
    wide_logits: Blocks
    """A pass over logits that holds z and something made of it at once: sums for smoothing or entropy, a cap, dz."""
    hidden: Blocks
    """k is the width in H."""
    weight: Blocks
    """k is the width in H."""
    has_descriptors: bool = False
    """Whether matrices are read through tensor descriptors. Without a copy engine they would be read entry by entry."""
    flatten: bool = False
    """Whether the loads of a tile start while the tile before is being finished. On sm_80 Triton would then not run
    any loads ahead."""


TUNINGS = {
    # Fastest of a dozen on an H200 (bench/LOG.md).
    "hopper": Tuning(
        Blocks(128, 256, 64, 8, 3),
        Blocks(128, 128, 64, 8, 4),
        Blocks(128, 64, 256, 8, 3),
        Blocks(64, 128, 256, 8, 4),
        has_descriptors=True,
        flatten=True,
    ),
    # The rest: chosen for what compiles without spills within the shared memory of the chip; not yet timed on one.
    "blackwell": Tuning(
        Blocks(128, 256, 64, 8, 3),
        Blocks(128, 128, 64, 8, 4),
        Blocks(128, 64, 128, 8, 4),
        Blocks(64, 128, 128, 8, 4),
        has_descriptors=True,
    ),
    "ampere": Tuning(
        Blocks(128, 128, 32, 8, 3), Blocks(128, 64, 32, 4, 3), Blocks(128, 32, 128, 8, 3), Blocks(32, 128, 128, 8, 3)
    ),
    "float32": Tuning(
        Blocks(128, 64, 32, 8, 2), Blocks(128, 64, 32, 8, 2), Blocks(64, 32, 64, 8, 2), Blocks(32, 64, 128, 8, 2)
    ),
}
TUNINGS["float32 on blackwell"] = TUNINGS["float32"]._replace(wide_logits=Blocks(64, 64, 32, 8, 2))


def tuning_for(dtype: torch.dtype, capability: int) -> Tuning:
    """Tile shapes by input dtype and compute capability (80, 90, 100, ...); 120 has the shared memory of Ampere."""
    name = {90: "hopper", 100: "blackwell", 103: "blackwell"}.get(capability, "ampere")
    if dtype == torch.float32:
        name = "float32 on blackwell" if name == "blackwell" else "float32"
    return TUNINGS[name]


def row_stats(hidden_TH: Tensor, head: Head, rows: Rows, *, want_sums: bool) -> RowStats:
    """`RowStats` without autograd; `want_sums` asks for `mean_T` and `expected_T`."""
    with _launching_on(hidden_TH):
        batch = _Batch(hidden_TH, head, rows)
        stats_5T, _ = batch.forward(0, batch.num_tokens, stored=None, want_sums=want_sums)
        return RowStats(*batch.spread(stats_5T).unbind())


def row_gradients(
    hidden_TH: Tensor, head: Head, rows: Rows, lse_T: Tensor, coefficients: Coefficients, *, needs: Needs
) -> Gradients:
    """Gradients for any function of the statistics, given the log-sum-exp of all logits (of all shards)."""
    with _launching_on(hidden_TH):
        batch = _Batch(hidden_TH, head, rows)
        gathered = Coefficients(*(coefficient[batch.gather_T] for coefficient in coefficients))
        return _recomputed(batch, batch.factors(0, lse_T[batch.gather_T], gathered), needs)


def fused(hidden_TH: Tensor, head: Head, rows: Rows, shape: LossShape, needs: Needs) -> tuple[RowStats, Gradients]:
    """The statistics, and the gradients of `weighted_loss`, in one call."""
    assert rows.weights_T is not None
    assert hidden_TH.dtype != torch.float16  # chunks of rows are added as they are
    with _launching_on(hidden_TH):
        batch = _Batch(hidden_TH, head, rows)
        weights_T, want_sums = rows.weights_T[batch.gather_T], shape.label_smoothing != 0
        chunk_rows = _chunk_rows(batch, needs)
        if head.softcap is not None or not chunk_rows:
            stats_5T, _ = batch.forward(0, batch.num_tokens, stored=None, want_sums=want_sums)
            coefficients = loss_coefficients(stats_5T[0], weights_T, shape, batch.vocab_size)
            gradients = _recomputed(batch, batch.factors(0, stats_5T[0], coefficients), needs)
        else:
            stats_5T, gradients = _stored(batch, weights_T, shape, needs, chunk_rows)
        return RowStats(*batch.spread(stats_5T).unbind()), gradients


def scale_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply contiguous tensors by a number on their device, in place; a factor of 1 costs no pass over them."""
    for gradient in gradients:
        if gradient.numel():
            with _launching_on(gradient):
                grid = min(_ceil_div(gradient.numel(), SCALE_BLOCK), 1024)
                kernels.scale_kernel[(grid,)](gradient, factor, gradient.numel(), BLOCK=SCALE_BLOCK)


def _chunk_rows(batch: _Batch, needs: Needs) -> int:
    """How many rows of E to hold at a time, or 0 if that would be too few."""
    row_bytes = batch.vocab_size * batch.dtype.itemsize
    sum_bytes = batch.weight_VH.numel() * 4 if needs.weight else 0
    if batch.num_tokens * row_bytes <= STORE_BYTES + sum_bytes:
        return batch.num_tokens
    most = STORE_BYTES // row_bytes
    if most < FEWEST_STORED_ROWS:
        return 0
    num_chunks = _ceil_div(batch.num_tokens, most)
    # Equal chunks, of whole tiles: a small last one would leave most of the GPU idle.
    return _ceil_div(_ceil_div(batch.num_tokens, num_chunks), 128) * 128


def _stored(
    batch: _Batch, weights_T: Tensor, shape: LossShape, needs: Needs, chunk_rows: int
) -> tuple[Tensor, Gradients]:
    """Statistics in gathered order, and gradients of the loss, chunk by chunk of rows through E."""
    want_sums = shape.label_smoothing != 0
    stats_5T = batch.empty(5, batch.num_tokens)
    store_RV = batch.empty_rows(chunk_rows, batch.vocab_size)
    out = batch.gradients(needs)
    starts = range(0, batch.num_tokens, chunk_rows)
    sums = batch.weight_sums() if needs.weight and len(starts) > 1 else None
    for first in starts:
        last = min(first + chunk_rows, batch.num_tokens)
        dz_RV = store_RV[: last - first]
        stats_5R, tops_NR = batch.forward(first, last - first, stored=dz_RV, want_sums=want_sums)
        stats_5T[:, first:last] = stats_5R
        coefficients = loss_coefficients(stats_5R[0], weights_T[first:last], shape, batch.vocab_size)
        factors = batch.factors(first, stats_5R[0], coefficients)
        tile_n = batch.logits_blocks(is_wide=want_sums).n
        batch.stored_to_dz(dz_RV, first, factors, tops_NR, tile_n=tile_n)
        if needs.hidden:
            parts = batch.hidden_parts(last - first, is_sliced=False)
            batch.add_hidden(dz_RV, first, batch.weight_VH, factors.unit, parts=parts, out_TH=out.hidden_TH)
        if needs.weight:
            batch.add_weight(dz_RV, first, factors.unit, sums, out.weight_VH)
        if needs.bias:
            batch.add_bias(dz_RV, first, factors.unit, out.bias_V)
    return stats_5T, batch.finish(out)


def _recomputed(batch: _Batch, factors: _Factors, needs: Needs) -> Gradients:
    """Gradients slice by slice of the vocabulary, each from logits made again."""
    per_entry = max(batch.num_tokens, 1) * batch.dtype.itemsize
    slice_size = min(batch.vocab_size, max(SLICE_BYTES // per_entry // 256 * 256, 256))
    store_RN = batch.empty_rows(batch.num_tokens, slice_size)
    starts = range(0, batch.vocab_size, slice_size)
    out = batch.gradients(needs)
    parts = batch.hidden_parts(batch.num_tokens, is_sliced=len(starts) > 1)
    for v0 in starts:
        v1 = min(v0 + slice_size, batch.vocab_size)
        dz_RN = store_RN[:, : v1 - v0]
        batch.make_dz(dz_RN, factors.factors_5R, v0, v1)
        if needs.hidden:
            batch.add_hidden(
                dz_RN,
                0,
                batch.weight_VH[v0:v1],
                factors.unit,
                parts=parts,
                out_TH=out.hidden_TH,
                is_first=v0 == 0,
                is_last=v1 == batch.vocab_size,
            )
        if needs.weight:
            batch.add_weight(dz_RN, 0, factors.unit, None, out.weight_VH[v0:v1])
        if needs.bias:
            batch.add_bias(dz_RN, 0, factors.unit, out.bias_V[v0:v1])
    return batch.finish(out)


class _Factors(NamedTuple):
    factors_5R: Tensor
    """lse, and a, e, b, c over `unit`; zeros past the last active row."""
    unit: Tensor
    """(1), the largest magnitude of a, e, b and c where gradients are float16, else 1."""


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _aligned(matrix: Tensor) -> Tensor:
    """Itself, or a copy where its rows do not all start at multiples of 16 bytes, as descriptors need it."""
    num_rows, num_columns = matrix.shape
    is_aligned = matrix.stride(0) * matrix.dtype.itemsize % 16 == 0 and matrix.data_ptr() % 16 == 0
    if is_aligned and matrix.stride(1) == 1 and matrix.stride(0) >= num_columns:
        return matrix
    return _empty_rows(num_rows, num_columns, matrix).copy_(matrix)


def _empty_rows(num_rows: int, num_columns: int, like: Tensor) -> Tensor:
    """Uninitialised, its rows at multiples of 16 bytes."""
    per_16_bytes = 16 // like.dtype.itemsize
    return like.new_empty(num_rows, _ceil_div(num_columns, per_16_bytes) * per_16_bytes)[:, :num_columns]


class _Batch:
    """The active rows, gathered on the device, and the launches over them."""

    def __init__(self, hidden_TH: Tensor, head: Head, rows: Rows) -> None:
        self.head, self.dtype, self.device = head, hidden_TH.dtype, hidden_TH.device
        self.one = torch.ones(1, device=self.device)
        self.bias_V = None if head.bias_V is None else head.bias_V.contiguous()
        self.weight_VH = _aligned(head.weight_VH)
        self.vocab_size, self.hidden_size = self.weight_VH.shape
        self.num_tokens = len(rows.targets_T)
        self.tuning = tuning_for(self.dtype, _capability(self.device))
        self.num_programs = _num_multiprocessors(self.device)
        # Active rows first, in order; the filler behind them gathers row 0 and scatters to a row that is cut off.
        every_T = torch.arange(self.num_tokens, device=self.device)
        slot_T = torch.where(rows.active_T, rows.active_T.cumsum(0) - 1, self.num_tokens)
        gather = torch.zeros(self.num_tokens + 1, dtype=torch.int64, device=self.device)
        self.gather_T = gather.scatter_(0, slot_T, every_T)[: self.num_tokens]
        self.count = rows.active_T.sum(dtype=torch.int32).reshape(1)
        self.is_filled_T = every_T < self.count
        # Zeros behind the active rows: what is there meets the zeros of dz, and 0 * NaN is NaN.
        self.hidden_TH = _aligned(hidden_TH[self.gather_T].masked_fill_(~self.is_filled_T[:, None], 0))
        self.targets_T = rows.targets_T[self.gather_T]

    def tiles(self, matrix: Tensor, num_rows: int, num_columns: int) -> Tensor | TensorDescriptor:
        """The matrix as the products read and write it: by its descriptor, if the GPU has a use for one."""
        if not self.tuning.has_descriptors:
            return matrix
        return TensorDescriptor.from_tensor(matrix, [num_rows, num_columns])

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def empty_rows(self, num_rows: int, num_columns: int) -> Tensor:
        return _empty_rows(num_rows, num_columns, self.hidden_TH)

    def spread(self, values_KT: Tensor) -> Tensor:
        """From gathered order back to the caller's along the last dimension, 0 on skipped rows."""
        out = values_KT.new_zeros(len(values_KT), self.num_tokens + 1)
        scatter_T = torch.where(self.is_filled_T, self.gather_T, self.num_tokens)
        return out.index_copy_(1, scatter_T, values_KT)[:, : self.num_tokens]

    def factors(self, first: int, lse_R: Tensor, coefficients: Coefficients) -> _Factors:
        # Past the last active row lie uninitialised statistics: they must not reach the maximum.
        is_filled_R = self.is_filled_T[first : first + len(lse_R)]
        factors_5R = torch.where(is_filled_R, torch.stack([lse_R, *coefficients]).float(), 0)
        factors_5R[1:] *= self.head.scale
        if self.dtype != torch.float16:  # nothing else is as narrow, and chunks of rows can be added as they are
            return _Factors(factors_5R, self.one)
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
            "GROUP_M": GROUP_M,
            "FLATTEN": self.tuning.flatten,
            "HAS_BIAS": self.bias_V is not None,
            "HAS_CAP": self.head.softcap is not None,
        }

    def forward(self, first: int, num_rows: int, *, stored: Tensor | None, want_sums: bool) -> tuple[Tensor, Tensor]:
        """(5, R) statistics of the gathered rows [first, first + num_rows), and the (N, R) maxima of their tiles.

        E of the rows goes to `stored`, if given.
        """
        blocks, last = self.logits_blocks(is_wide=want_sums), first + num_rows
        num_tiles = _ceil_div(self.vocab_size, blocks.n)
        partials = self.empty(4 if want_sums else 2, num_tiles, num_rows)
        target_R = torch.zeros(num_rows, device=self.device)
        grid = min(_ceil_div(num_rows, blocks.m) * num_tiles, self.num_programs)
        kernels.logits_kernel[(grid,)](
            self.tiles(self.hidden_TH[first:last], blocks.m, blocks.k),
            self.tiles(self.weight_VH, blocks.n, blocks.k),
            self.bias_V,
            self.targets_T[first:last],
            self.count,
            partials,
            target_R,
            None if stored is None else self.tiles(stored, blocks.m, blocks.n),
            first,
            num_rows,
            self.vocab_size,
            self.hidden_TH.stride(0),
            self.weight_VH.stride(0),
            0 if stored is None else stored.stride(0),
            float(self.head.scale),
            float(self.head.softcap or 1.0),
            WANT_SUMS=want_sums,
            STORE=stored is not None,
            **self.logits_options(blocks),
        )
        stats_5R = self.empty(5, num_rows)
        kernels.reduce_kernel[(_ceil_div(num_rows, REDUCE_ROWS),)](
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
            BLOCK_T=REDUCE_TILES,
            WANT_SUMS=want_sums,
        )
        return stats_5R, partials[0]

    def stored_to_dz(self, dz_RV: Tensor, first: int, factors: _Factors, tops_NR: Tensor, *, tile_n: int) -> None:
        """Make dz of E, in place; `tops_NR` are the maxima of tiles of `tile_n` entries."""
        num_rows = len(dz_RV)
        num_tiles = _ceil_div(num_rows, DZ_ROWS) * _ceil_div(self.vocab_size, tile_n)
        grid = min(num_tiles, DZ_PROGRAMS * self.num_programs)
        kernels.stored_dz_kernel[(grid,)](
            dz_RV,
            self.targets_T[first : first + num_rows],
            self.count,
            factors.factors_5R,
            tops_NR,
            first,
            num_rows,
            self.vocab_size,
            dz_RV.stride(0),
            BLOCK_M=DZ_ROWS,
            BLOCK_N=tile_n,
            PAD_M=self.tuning.weight.m,
            num_warps=8,
        )

    def make_dz(self, dz_RN: Tensor, factors_5R: Tensor, v0: int, v1: int) -> None:
        """Write dz of all rows and the entries [v0, v1)."""
        blocks = self.logits_blocks(is_wide=True)
        num_tiles = _ceil_div(self.num_tokens, blocks.m) * _ceil_div(v1 - v0, blocks.n)
        kernels.dz_kernel[(min(num_tiles, self.num_programs),)](
            self.tiles(self.hidden_TH, blocks.m, blocks.k),
            self.tiles(self.weight_VH[v0:v1], blocks.n, blocks.k),
            None if self.bias_V is None else self.bias_V[v0:v1],
            # Outside the slice, even below it, a target is -1 or out of reach: it matches no entry.
            self.targets_T - v0,
            self.count,
            factors_5R,
            self.tiles(dz_RN, blocks.m, blocks.n),
            self.num_tokens,
            v1 - v0,
            self.hidden_TH.stride(0),
            self.weight_VH.stride(0),
            dz_RN.stride(0),
            float(self.head.scale),
            float(self.head.softcap or 1.0),
            **self.logits_options(blocks),
        )

    def hidden_tiles(self, num_rows: int) -> int:
        return _ceil_div(num_rows, self.tuning.hidden.m) * _ceil_div(self.hidden_size, self.tuning.hidden.k)

    def hidden_items(self, num_rows: int) -> int:
        """Parts of tiles at most; the GPU knows how many tiles have active rows, and splits them if they are few."""
        return min(self.hidden_tiles(num_rows) * MAX_PARTS, MAX_ROUNDS * self.num_programs)

    def hidden_parts(self, num_rows: int, *, is_sliced: bool) -> Tensor:
        """Room for sums so far of the hidden gradient, in float32, tile by tile."""
        num_items = max(self.hidden_items(num_rows), self.hidden_tiles(num_rows) * is_sliced)
        return self.empty(num_items, self.tuning.hidden.m, self.tuning.hidden.k)

    def add_hidden(
        self,
        dz_RN: Tensor,
        first: int,
        weight_NH: Tensor,
        unit: Tensor,
        *,
        parts: Tensor,
        out_TH: Tensor,
        is_first: bool = True,
        is_last: bool = True,
    ) -> None:
        """dz @ weight for the gathered rows from `first` on; `out`, in the caller's order, is the sum over slices."""
        blocks, num_rows = self.tuning.hidden, len(dz_RN)
        rows_R, num_items = self.gather_T[first : first + num_rows], self.hidden_items(num_rows)
        options = {
            "H": self.hidden_size,
            "BLOCK_M": blocks.m,
            "BLOCK_H": blocks.k,
            "PROGRAMS": self.num_programs,
            "MAX_PARTS": MAX_PARTS,
            "MAX_ITEMS": MAX_ROUNDS * self.num_programs,
        }
        kernels.grad_hidden_kernel[(max(self.hidden_tiles(num_rows), num_items),)](
            self.tiles(dz_RN, blocks.m, blocks.n),
            self.tiles(weight_NH, blocks.n, blocks.k),
            self.count,
            unit,
            rows_R,
            parts,
            out_TH,
            first,
            num_rows,
            len(weight_NH),
            dz_RN.stride(0),
            weight_NH.stride(0),
            BLOCK_N=blocks.n,
            IS_FIRST=is_first,
            IS_LAST=is_last,
            **options | self.options(blocks),
        )
        if is_last:
            kernels.join_hidden_kernel[(num_items * (blocks.m // JOIN_ROWS),)](
                parts, self.count, unit, rows_R, out_TH, first, num_rows, JOIN_M=JOIN_ROWS, **options
            )

    def weight_tiles(self, num_entries: int) -> int:
        return _ceil_div(num_entries, self.tuning.weight.n) * _ceil_div(self.hidden_size, self.tuning.weight.k)

    def weight_sums(self) -> Tensor:
        """Room for the head's gradient between chunks of rows, in float32, tile by tile."""
        return self.empty(self.weight_tiles(self.vocab_size), self.tuning.weight.k, self.tuning.weight.n)

    def add_weight(self, dz_RN: Tensor, first: int, unit: Tensor, sums: Tensor | None, out_NH: Tensor) -> None:
        """out = dz^T @ hidden, for the gathered rows from `first` on; with `sums`, of them and the chunks before."""
        blocks = self.tuning.weight
        num_rows, num_entries = dz_RN.shape
        kernels.grad_weight_kernel[(min(self.weight_tiles(num_entries), self.num_programs),)](
            self.tiles(dz_RN, blocks.m, blocks.n),
            self.tiles(self.hidden_TH[first : first + num_rows], blocks.m, blocks.k),
            self.count,
            unit,
            sums,
            out_NH,
            first,
            num_rows,
            num_entries,
            dz_RN.stride(0),
            self.hidden_TH.stride(0),
            BLOCK_M=blocks.m,
            BLOCK_N=blocks.n,
            BLOCK_H=blocks.k,
            IS_CHUNK=sums is not None,
            # Triton would hold the next tile of the sums ahead as well: more than fits.
            FLATTEN=self.tuning.flatten and sums is None,
            **self.options(blocks),
        )

    def add_bias(self, dz_RN: Tensor, first: int, unit: Tensor, out_N: Tensor) -> None:
        """The sum of the rows of dz, added to that of the rows before `first`."""
        num_rows, num_entries = dz_RN.shape
        kernels.grad_bias_kernel[(_ceil_div(num_entries, BIAS_BLOCK),)](
            dz_RN,
            self.count,
            unit,
            out_N,
            first,
            num_rows,
            num_entries,
            dz_RN.stride(0),
            BLOCK_M=BIAS_BLOCK,
            BLOCK_N=BIAS_BLOCK,
        )

    def gradients(self, needs: Needs) -> Gradients:
        """Room for the gradients: hidden's with zeros for the skipped rows, the others uninitialised."""
        hidden_shape = (self.num_tokens, self.hidden_size) if needs.hidden else (0,)
        return Gradients(
            torch.zeros(hidden_shape, dtype=self.dtype, device=self.device),
            self.empty(*(self.weight_VH.shape if needs.weight else (0,)), dtype=self.dtype),
            self.empty(self.vocab_size if needs.bias else 0),
        )

    def finish(self, found: Gradients) -> Gradients:
        """In the dtypes of the inputs."""
        return Gradients(*(gradient.to(self.dtype) for gradient in found))


def _launching_on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels start on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _num_multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 4


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
