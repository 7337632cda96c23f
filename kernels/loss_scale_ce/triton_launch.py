"""Launches of the GPU kernels over the rows of a `Batch`. No call waits for the device, and importing compiles nothing.

Letters: T tokens, R rows of a buffer, V vocabulary, N a slice of it or its tiles, H hidden size.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from postmill.kernels.loss_scale_ce import triton_gradients, triton_logits
from postmill.kernels.loss_scale_ce.triton_batch import Batch, Factors, ceil_div
from postmill.kernels.loss_scale_ce.triton_tuning import (
    BIAS_BLOCK,
    DZ_PROGRAMS,
    DZ_ROWS,
    GROUP_M,
    JOIN_ROWS,
    MAX_PARTS,
    MAX_ROUNDS,
    REDUCE_ROWS,
    REDUCE_TILES,
    SCALE_BLOCK,
    Blocks,
)


def launching_on(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Kernels start on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def forward(
    batch: Batch, first: int, num_rows: int, *, stored: Tensor | None, want_sums: bool
) -> tuple[Tensor, Tensor]:
    """(5, R) statistics of the gathered rows [first, first + num_rows), and the (N, R) maxima of their tiles.

    E of the rows goes to `stored`, if given.
    """
    blocks, last = logits_blocks(batch, is_wide=want_sums), first + num_rows
    num_tiles = ceil_div(batch.vocab_size, blocks.n)
    partials = batch.empty(4 if want_sums else 2, num_tiles, num_rows)
    target_R = torch.zeros(num_rows, device=batch.device)
    grid = min(ceil_div(num_rows, blocks.m) * num_tiles, batch.num_programs)
    triton_logits.logits_kernel[(grid,)](
        _tiles(batch, batch.hidden_TH[first:last], blocks.m, blocks.k),
        _tiles(batch, batch.weight_VH, blocks.n, blocks.k),
        batch.bias_V,
        batch.targets_T[first:last],
        batch.count,
        partials,
        target_R,
        None if stored is None else _tiles(batch, stored, blocks.m, blocks.n),
        first,
        num_rows,
        batch.vocab_size,
        batch.hidden_TH.stride(0),
        batch.weight_VH.stride(0),
        0 if stored is None else stored.stride(0),
        WANT_SUMS=want_sums,
        **_logits_options(batch, blocks),
    )
    stats_5R = batch.empty(5, num_rows)
    triton_logits.reduce_kernel[(ceil_div(num_rows, REDUCE_ROWS),)](
        partials,
        batch.targets_T[first:last],
        target_R,
        batch.count,
        stats_5R,
        first,
        num_rows,
        num_tiles,
        batch.vocab_size,
        BLOCK_M=REDUCE_ROWS,
        BLOCK_T=REDUCE_TILES,
        WANT_SUMS=want_sums,
    )
    return stats_5R, partials[0]


def stored_to_dz(
    batch: Batch, dz_RV: Tensor, first: int, factors: Factors, tops_NR: Tensor, *, want_sums: bool
) -> None:
    """Make dz of E, in place; `tops_NR` are the maxima of the tiles that `forward` took with the same `want_sums`."""
    num_rows, tile_n = len(dz_RV), logits_blocks(batch, is_wide=want_sums).n
    num_tiles = ceil_div(num_rows, DZ_ROWS) * ceil_div(batch.vocab_size, tile_n)
    grid = min(num_tiles, DZ_PROGRAMS * batch.num_programs)
    triton_logits.stored_dz_kernel[(grid,)](
        dz_RV,
        batch.targets_T[first : first + num_rows],
        batch.count,
        factors.factors_5R,
        tops_NR,
        first,
        num_rows,
        batch.vocab_size,
        dz_RV.stride(0),
        BLOCK_M=DZ_ROWS,
        BLOCK_N=tile_n,
        PAD_M=batch.tuning.weight.m,
        num_warps=8,
    )


def make_dz(batch: Batch, dz_RN: Tensor, factors_5R: Tensor, v0: int, v1: int) -> None:
    """Write dz of all rows and the entries [v0, v1)."""
    blocks = logits_blocks(batch, is_wide=True)
    num_tiles = ceil_div(batch.num_tokens, blocks.m) * ceil_div(v1 - v0, blocks.n)
    triton_logits.dz_kernel[(min(num_tiles, batch.num_programs),)](
        _tiles(batch, batch.hidden_TH, blocks.m, blocks.k),
        _tiles(batch, batch.weight_VH[v0:v1], blocks.n, blocks.k),
        None if batch.bias_V is None else batch.bias_V[v0:v1],
        # Outside the slice, even below it, a target is -1 or out of reach: it matches no entry.
        batch.targets_T - v0,
        batch.count,
        factors_5R,
        _tiles(batch, dz_RN, blocks.m, blocks.n),
        batch.num_tokens,
        v1 - v0,
        batch.hidden_TH.stride(0),
        batch.weight_VH.stride(0),
        dz_RN.stride(0),
        **_logits_options(batch, blocks),
    )


def hidden_parts(batch: Batch, num_rows: int, *, is_sliced: bool) -> Tensor:
    """Room for sums so far of the hidden gradient, in float32, tile by tile."""
    num_items = max(_hidden_items(batch, num_rows), _hidden_tiles(batch, num_rows) * is_sliced)
    return batch.empty(num_items, batch.tuning.hidden.m, batch.tuning.hidden.k)


def add_hidden(
    batch: Batch,
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
    blocks, num_rows = batch.tuning.hidden, len(dz_RN)
    rows_R, num_items = batch.gather_T[first : first + num_rows], _hidden_items(batch, num_rows)
    options = {
        "H": batch.hidden_size,
        "BLOCK_M": blocks.m,
        "BLOCK_H": blocks.k,
        "PROGRAMS": batch.num_programs,
        "MAX_PARTS": MAX_PARTS,
        "MAX_ITEMS": MAX_ROUNDS * batch.num_programs,
    }
    triton_gradients.grad_hidden_kernel[(max(_hidden_tiles(batch, num_rows), num_items),)](
        _tiles(batch, dz_RN, blocks.m, blocks.n),
        _tiles(batch, weight_NH, blocks.n, blocks.k),
        batch.count,
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
        **options | _options(batch, blocks),
    )
    if is_last:
        triton_gradients.join_hidden_kernel[(num_items * (blocks.m // JOIN_ROWS),)](
            parts, batch.count, unit, rows_R, out_TH, first, num_rows, JOIN_M=JOIN_ROWS, **options
        )


def weight_sums(batch: Batch) -> Tensor:
    """Room for the head's gradient between chunks of rows, in float32, tile by tile."""
    return batch.empty(_weight_tiles(batch, batch.vocab_size), batch.tuning.weight.k, batch.tuning.weight.n)


def add_weight(batch: Batch, dz_RN: Tensor, first: int, unit: Tensor, *, sums: Tensor | None, out_NH: Tensor) -> None:
    """out = dz^T @ hidden, for the gathered rows from `first` on; with `sums`, of them and the chunks before."""
    blocks = batch.tuning.weight
    num_rows, num_entries = dz_RN.shape
    triton_gradients.grad_weight_kernel[(min(_weight_tiles(batch, num_entries), batch.num_programs),)](
        _tiles(batch, dz_RN, blocks.m, blocks.n),
        _tiles(batch, batch.hidden_TH[first : first + num_rows], blocks.m, blocks.k),
        batch.count,
        unit,
        sums,
        out_NH,
        first,
        num_rows,
        num_entries,
        dz_RN.stride(0),
        batch.hidden_TH.stride(0),
        BLOCK_M=blocks.m,
        BLOCK_N=blocks.n,
        BLOCK_H=blocks.k,
        # Triton would hold the next tile of the sums ahead as well: more than fits.
        FLATTEN=batch.tuning.flatten and sums is None,
        **_options(batch, blocks),
    )


def add_bias(batch: Batch, dz_RN: Tensor, first: int, unit: Tensor, out_N: Tensor) -> None:
    """The sum of the rows of dz, added to that of the rows before `first`."""
    num_rows, num_entries = dz_RN.shape
    triton_gradients.grad_bias_kernel[(ceil_div(num_entries, BIAS_BLOCK),)](
        dz_RN,
        batch.count,
        unit,
        out_N,
        first,
        num_rows,
        num_entries,
        dz_RN.stride(0),
        BLOCK_M=BIAS_BLOCK,
        BLOCK_N=BIAS_BLOCK,
    )


def scale(values: Tensor, factor: Tensor) -> None:
    """Multiply a contiguous tensor by a number on its device, in place."""
    grid = min(ceil_div(values.numel(), SCALE_BLOCK), 1024)
    triton_gradients.scale_kernel[(grid,)](values, factor, values.numel(), BLOCK=SCALE_BLOCK)


def logits_blocks(batch: Batch, *, is_wide: bool) -> Blocks:
    """Tiles of a pass over logits."""
    return batch.tuning.wide_logits if is_wide or batch.head.softcap is not None else batch.tuning.logits


def _logits_options(batch: Batch, blocks: Blocks) -> dict[str, Any]:
    softcap = batch.head.softcap
    return _options(batch, blocks) | {
        "scale": float(batch.head.scale),
        "softcap": None if softcap is None else float(softcap),
        "BLOCK_M": blocks.m,
        "BLOCK_N": blocks.n,
        "BLOCK_K": blocks.k,
        "GROUP_M": GROUP_M,
        "FLATTEN": batch.tuning.flatten,
    }


def _options(batch: Batch, blocks: Blocks) -> dict[str, Any]:
    """What every product is launched with."""
    is_tf32 = batch.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
    return {
        "H": batch.hidden_size,
        "UPCAST": batch.dtype == torch.bfloat16 and batch.device.type == "cpu",
        # tf32x3 is float32 on the matrix units, to about 2^-21; below float32 the setting is not read.
        "PRECISION": "tf32" if is_tf32 else "tf32x3",
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }


def _tiles(batch: Batch, matrix: Tensor, num_rows: int, num_columns: int) -> Tensor | TensorDescriptor:
    """The matrix as the products read and write it: by its descriptor, if the GPU has a use for one."""
    if not batch.tuning.has_descriptors:
        return matrix
    return TensorDescriptor.from_tensor(matrix, [num_rows, num_columns])


def _hidden_tiles(batch: Batch, num_rows: int) -> int:
    return ceil_div(num_rows, batch.tuning.hidden.m) * ceil_div(batch.hidden_size, batch.tuning.hidden.k)


def _hidden_items(batch: Batch, num_rows: int) -> int:
    """Parts of tiles at most; the GPU knows how many tiles have active rows, and splits them if they are few."""
    return min(_hidden_tiles(batch, num_rows) * MAX_PARTS, MAX_ROUNDS * batch.num_programs)


def _weight_tiles(batch: Batch, num_entries: int) -> int:
    return ceil_div(num_entries, batch.tuning.weight.n) * ceil_div(batch.hidden_size, batch.tuning.weight.k)
