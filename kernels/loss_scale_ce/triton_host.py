"""The GPU backend: two ways to a gradient, by the launches of `triton_launch.py`. No call waits for the device.

Active rows are gathered to the front on the device. Two ways to a gradient, as on the CPU:

- stored: `fused` keeps E = exp(z - max of its tile), in the inputs' dtype, for as many rows at a time as STORE_BYTES
  holds, and makes dz of it in place once the sums of its rows are known: 6 A H V operations.
- recomputed: logits are made again, slice by slice of the vocabulary, into a buffer of at most SLICE_BYTES: 8 A H V.
  `row_gradients` always does this, and `fused` where there is a soft cap (its derivative needs z, not E) or where
  STORE_BYTES holds too few rows to be worth a pass over the head's gradient.

Letters: T tokens, R rows of a buffer, V vocabulary, N a slice of it, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from postmill.kernels.loss_scale_ce import triton_launch as launch
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
from postmill.kernels.loss_scale_ce.triton_batch import Batch, Factors, ceil_div

STORE_BYTES = 1 << 30
"""For E, where the head is frozen: 3,456 rows of 151,936 in bfloat16."""
STORE_SHARE = 8
"""Each further chunk of rows reads and writes the head's gradient again, in float32. So E may grow by as much as that
float32 copy would take if one chunk is enough then, and else by one part of it in so many: at H 4096, V 151,936 and T
16,384 four chunks instead of five, 4% faster for 6% more memory (H200, 2026-11-26; bench/LOG.md)."""
SLICE_BYTES = 256 << 20
"""For dz of all rows and a slice of the vocabulary, where E is not stored."""
FEWEST_STORED_ROWS = 512
"""Below this many rows a chunk, the traffic of the head's gradient costs more than making the logits twice."""


def row_stats(hidden_TH: Tensor, head: Head, rows: Rows, *, want_sums: bool) -> RowStats:
    """`RowStats` without autograd; `want_sums` asks for `mean_T` and `expected_T`."""
    with launch.launching_on(hidden_TH):
        batch = Batch(hidden_TH, head, rows)
        stats_5T, _ = launch.forward(batch, 0, batch.num_tokens, stored=None, want_sums=want_sums)
        return RowStats(*batch.spread(stats_5T).unbind())


def row_gradients(
    hidden_TH: Tensor, head: Head, rows: Rows, lse_T: Tensor, coefficients: Coefficients, *, needs: Needs
) -> Gradients:
    """Gradients for any function of the statistics, given the log-sum-exp of all logits (of all shards)."""
    with launch.launching_on(hidden_TH):
        batch = Batch(hidden_TH, head, rows)
        gathered = Coefficients(*(coefficient[batch.gather_T] for coefficient in coefficients))
        return _recomputed(batch, batch.factors(0, lse_T[batch.gather_T], gathered), needs)


def fused(hidden_TH: Tensor, head: Head, rows: Rows, shape: LossShape, needs: Needs) -> tuple[RowStats, Gradients]:
    """The statistics, and the gradients of `weighted_loss`, in one call."""
    assert rows.weights_T is not None
    assert hidden_TH.dtype != torch.float16  # chunks of rows are added as they are
    with launch.launching_on(hidden_TH):
        batch = Batch(hidden_TH, head, rows)
        weights_T, want_sums = rows.weights_T[batch.gather_T], shape.label_smoothing != 0
        chunk_rows = _chunk_rows(batch, needs)
        if head.softcap is not None or not chunk_rows:
            stats_5T, _ = launch.forward(batch, 0, batch.num_tokens, stored=None, want_sums=want_sums)
            coefficients = loss_coefficients(stats_5T[0], weights_T, shape, batch.vocab_size)
            gradients = _recomputed(batch, batch.factors(0, stats_5T[0], coefficients), needs)
        else:
            stats_5T, gradients = _stored(batch, weights_T, shape, needs, chunk_rows)
        return RowStats(*batch.spread(stats_5T).unbind()), gradients


def scale_(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply contiguous tensors by a number on their device, in place; a factor of 1 costs no pass over them."""
    for gradient in gradients:
        if gradient.numel():
            with launch.launching_on(gradient):
                launch.scale(gradient, factor)


def _chunk_rows(batch: Batch, needs: Needs) -> int:
    """How many rows of E to hold at a time, or 0 if that would be too few."""
    row_bytes = batch.vocab_size * batch.dtype.itemsize
    sum_bytes = batch.weight_VH.numel() * 4 if needs.weight else 0
    if batch.num_tokens * row_bytes <= STORE_BYTES + sum_bytes:
        return batch.num_tokens
    most = (STORE_BYTES + sum_bytes // STORE_SHARE) // row_bytes
    if most < FEWEST_STORED_ROWS:
        return 0
    num_chunks = ceil_div(batch.num_tokens, most)
    # Equal chunks, of whole tiles: a small last one would leave most of the GPU idle.
    return ceil_div(ceil_div(batch.num_tokens, num_chunks), 128) * 128


def _stored(
    batch: Batch, weights_T: Tensor, shape: LossShape, needs: Needs, chunk_rows: int
) -> tuple[Tensor, Gradients]:
    """Statistics in gathered order, and gradients of the loss, chunk by chunk of rows through E."""
    want_sums = shape.label_smoothing != 0
    stats_5T = batch.empty(5, batch.num_tokens)
    store_RV = batch.empty_rows(chunk_rows, batch.vocab_size)
    out = batch.gradients(needs)
    starts = range(0, batch.num_tokens, chunk_rows)
    sums = launch.weight_sums(batch) if needs.weight and len(starts) > 1 else None
    for first in starts:
        last = min(first + chunk_rows, batch.num_tokens)
        dz_RV = store_RV[: last - first]
        stats_5R, tops_NR = launch.forward(batch, first, last - first, stored=dz_RV, want_sums=want_sums)
        stats_5T[:, first:last] = stats_5R
        coefficients = loss_coefficients(stats_5R[0], weights_T[first:last], shape, batch.vocab_size)
        factors = batch.factors(first, stats_5R[0], coefficients)
        launch.stored_to_dz(batch, dz_RV, first, factors, tops_NR, want_sums=want_sums)
        if needs.hidden:
            parts = launch.hidden_parts(batch, last - first, is_sliced=False)
            launch.add_hidden(batch, dz_RV, first, batch.weight_VH, factors.unit, parts=parts, out_TH=out.hidden_TH)
        if needs.weight:
            launch.add_weight(batch, dz_RV, first, factors.unit, sums=sums, out_NH=out.weight_VH)
        if needs.bias:
            launch.add_bias(batch, dz_RV, first, factors.unit, out.bias_V)
    return stats_5T, batch.finish(out)


def _recomputed(batch: Batch, factors: Factors, needs: Needs) -> Gradients:
    """Gradients slice by slice of the vocabulary, each from logits made again."""
    per_entry = max(batch.num_tokens, 1) * batch.dtype.itemsize
    slice_size = min(batch.vocab_size, max(SLICE_BYTES // per_entry // 256 * 256, 256))
    store_RN = batch.empty_rows(batch.num_tokens, slice_size)
    starts = range(0, batch.vocab_size, slice_size)
    out = batch.gradients(needs)
    parts = launch.hidden_parts(batch, batch.num_tokens, is_sliced=len(starts) > 1)
    for v0 in starts:
        v1 = min(v0 + slice_size, batch.vocab_size)
        dz_RN = store_RN[:, : v1 - v0]
        launch.make_dz(batch, dz_RN, factors.factors_5R, v0, v1)
        if needs.hidden:
            launch.add_hidden(
                batch,
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
            launch.add_weight(batch, dz_RN, 0, factors.unit, sums=None, out_NH=out.weight_VH[v0:v1])
        if needs.bias:
            launch.add_bias(batch, dz_RN, 0, factors.unit, out.bias_V[v0:v1])
    return batch.finish(out)
