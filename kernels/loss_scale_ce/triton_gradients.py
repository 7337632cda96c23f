"""GPU kernels of the gradients, given dz: products, their sums, and the scaling. Importing this compiles nothing.

    grad_hidden_kernel    dX = dz W, or parts of that sum, where too few tiles would leave the GPU idle
    join_hidden_kernel    the parts -> dX
    grad_weight_kernel    dW = dz^T X
    grad_bias_kernel      sums of the columns of dz
    scale_kernel          gradients times a number, which is 1 nearly always and costs nothing then

Letters, and who takes which tile, as in `triton_logits.py`. Accumulators are float32; operands have the dtype of the
inputs. Coefficients of a float16 dz come divided by their largest magnitude, `unit`, which the products multiply back
at the end, so that it does not vanish under a large normaliser; elsewhere `unit` is 1.
"""

# Triton reads annotations as types, hence no `from __future__ import annotations`, and its builtins have no stubs.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
# ruff: noqa: PLR0917

import triton
import triton.language as tl

from postmill.kernels.loss_scale_ce.triton_tiles import Matrix, dot, load_tile


@triton.jit
def _num_parts(num_tiles, PROGRAMS: tl.constexpr, MAX_PARTS: tl.constexpr, MAX_ITEMS: tl.constexpr):
    """How many parts of the vocabulary to sum apart, so that rounds of PROGRAMS programs are filled best.

    With the round of whole sums as the unit of time; each part costs 2% of it: it is written and read once more.
    """
    best = 1
    least = tl.cdiv(num_tiles, PROGRAMS) * 1.02
    for parts in range(2, MAX_PARTS + 1):
        time = tl.cdiv(num_tiles * parts, PROGRAMS) / parts * (1.0 + 0.02 * parts)
        is_better = (time < least) & (num_tiles * parts <= MAX_ITEMS)
        best = tl.where(is_better, parts, best)
        least = tl.where(is_better, time, least)
    return best


@triton.jit
def _put_hidden(acc, unit_ptr, rows_ptr, out_ptr, m, h, count, H: tl.constexpr):
    """Store dX of gathered rows m where the rows came from."""
    row = tl.load(rows_ptr + m, mask=m < count, other=0)
    at = out_ptr + row[:, None] * H + h[None, :]
    acc *= tl.load(unit_ptr)
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=(m < count)[:, None] & (h < H)[None, :])


@triton.jit
def grad_hidden_kernel(
    dz,  # (R, N)
    w,  # (N, H)
    count_ptr,
    unit_ptr,  # (1) float32
    rows_ptr,  # (R) int64: where the gathered rows came from
    parts_ptr,  # (parts of tiles, BLOCK_M, BLOCK_H) float32: sums so far, where there are several parts or slices
    out_ptr,  # (T, H) out
    first_row,
    num_rows,
    vocab_size,
    dz_stride,
    w_stride,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    IS_FIRST: tl.constexpr,  # slice of the vocabulary
    IS_LAST: tl.constexpr,
    PROGRAMS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    MAX_ITEMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    num_h = tl.cdiv(H, BLOCK_H)
    num_tiles = tl.cdiv(tl.maximum(count, 0), BLOCK_M) * num_h
    num_parts = _num_parts(num_tiles, PROGRAMS, MAX_PARTS, MAX_ITEMS)
    item = tl.program_id(0)
    if item >= num_tiles * num_parts:
        return
    part, tile = item // num_tiles, item % num_tiles
    pid_m, pid_h = tile // num_h, tile % num_h
    part_size = tl.cdiv(tl.cdiv(vocab_size, BLOCK_N), num_parts) * BLOCK_N
    dz, w = Matrix(dz, num_rows, vocab_size, dz_stride), Matrix(w, vocab_size, H, w_stride)
    m, h = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H)
    sums = parts_ptr + item.to(tl.int64) * (BLOCK_M * BLOCK_H) + (m[:, None] * BLOCK_H + h[None, :])
    acc = tl.zeros((BLOCK_M, BLOCK_H), tl.float32) if IS_FIRST else tl.load(sums)
    for n0 in range(part * part_size, tl.minimum((part + 1) * part_size, vocab_size), BLOCK_N):
        dz_tile = load_tile(dz, pid_m * BLOCK_M, n0, BLOCK_M, BLOCK_N)
        w_tile = load_tile(w, n0, pid_h * BLOCK_H, BLOCK_N, BLOCK_H)
        acc = dot(dz_tile, w_tile, acc, UPCAST, PRECISION)
    if IS_LAST and (num_parts == 1):
        _put_hidden(acc, unit_ptr, rows_ptr, out_ptr, pid_m * BLOCK_M + m, pid_h * BLOCK_H + h, count, H)
    else:
        tl.store(sums, acc)


@triton.jit
def join_hidden_kernel(
    parts_ptr,
    count_ptr,
    unit_ptr,
    rows_ptr,
    out_ptr,
    first_row,
    num_rows,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    JOIN_M: tl.constexpr,  # rows of a program, a divisor of BLOCK_M
    PROGRAMS: tl.constexpr,
    MAX_PARTS: tl.constexpr,
    MAX_ITEMS: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    num_h = tl.cdiv(H, BLOCK_H)
    num_tiles = tl.cdiv(tl.maximum(count, 0), BLOCK_M) * num_h
    num_parts = _num_parts(num_tiles, PROGRAMS, MAX_PARTS, MAX_ITEMS)
    tile = tl.program_id(0) // (BLOCK_M // JOIN_M)
    if (num_parts == 1) | (tile >= num_tiles):
        return
    within_m = tl.program_id(0) % (BLOCK_M // JOIN_M) * JOIN_M + tl.arange(0, JOIN_M)
    within_h = tl.arange(0, BLOCK_H)
    of = parts_ptr + within_m[:, None] * BLOCK_H + within_h[None, :]
    acc = tl.zeros((JOIN_M, BLOCK_H), tl.float32)
    for part in range(num_parts):
        acc += tl.load(of + tl.cast(part * num_tiles + tile, tl.int64) * (BLOCK_M * BLOCK_H))
    m, h = tile // num_h * BLOCK_M + within_m, tile % num_h * BLOCK_H + within_h
    _put_hidden(acc, unit_ptr, rows_ptr, out_ptr, m, h, count, H)


@triton.jit
def grad_weight_kernel(
    dz,  # (R, N)
    x,  # (R, H)
    count_ptr,
    unit_ptr,
    sums_ptr,  # (tiles, BLOCK_H, BLOCK_N) float32, or None where there is one chunk of rows
    out_ptr,  # (N, H) out
    first_row,
    num_rows,
    vocab_size,
    dz_stride,
    x_stride,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    FLATTEN: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    total = tl.load(count_ptr)
    count = tl.maximum(tl.minimum(total - first_row, num_rows), 0)
    if sums_ptr is not None and (first_row > 0) and (count == 0):
        return
    num_h = tl.cdiv(H, BLOCK_H)
    num_k = tl.maximum(tl.cdiv(count, BLOCK_M), 1)  # without a row: one product of zeros
    unit = tl.load(unit_ptr)
    dz, x = Matrix(dz, num_rows, vocab_size, dz_stride), Matrix(x, num_rows, H, x_stride)
    for tile in tl.range(tl.program_id(0), tl.cdiv(vocab_size, BLOCK_N) * num_h, tl.num_programs(0), flatten=FLATTEN):
        pid_n, pid_h = tile // num_h, tile % num_h
        n, h = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_H)
        acc = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
        if sums_ptr is not None:  # go on from the sum of the chunks before; the last chunk with a row in it rounds
            # Column by column: on sm_90 row by row spills, and a mask instead of the if takes all 255 registers.
            sums = sums_ptr + tl.cast(tile, tl.int64) * (BLOCK_N * BLOCK_H) + (n[:, None] + h[None, :] * BLOCK_N)
            if first_row > 0:
                acc = tl.load(sums)
        for k in range(num_k):
            m = k * BLOCK_M
            dz_tile = load_tile(dz, m, pid_n * BLOCK_N, BLOCK_M, BLOCK_N)
            x_tile = load_tile(x, m, pid_h * BLOCK_H, BLOCK_M, BLOCK_H)
            acc = dot(tl.trans(dz_tile), x_tile, acc, UPCAST, PRECISION)
        if sums_ptr is not None and (first_row + num_rows < total):
            tl.store(sums, acc)
        else:
            # A long offset for the tile and short ones in it: 64 bits for each entry would spill.
            first = tl.cast(pid_n * BLOCK_N, tl.int64) * H + pid_h * BLOCK_H
            mask = (pid_n * BLOCK_N + n < vocab_size)[:, None] & (pid_h * BLOCK_H + h < H)[None, :]
            at = out_ptr + first + (n[:, None] * H + h[None, :])
            tl.store(at, (acc * unit).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def grad_bias_kernel(
    dz_ptr,  # (R, N)
    count_ptr,
    unit_ptr,
    out_ptr,  # (N) float32 out
    first_row,
    num_rows,
    vocab_size,
    row_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    count = tl.maximum(tl.minimum(tl.load(count_ptr) - first_row, num_rows), 0)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_vocab = n < vocab_size
    acc = tl.load(out_ptr + n, mask=in_vocab & (first_row > 0), other=0.0)
    unit = tl.load(unit_ptr)
    for m0 in range(0, count, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        at = dz_ptr + m.to(tl.int64)[:, None] * row_stride + n[None, :]
        dz = tl.load(at, mask=(m < count)[:, None] & in_vocab[None, :], other=0.0)
        acc += tl.sum(dz.to(tl.float32), 0) * unit
    tl.store(out_ptr + n, acc, mask=in_vocab)


@triton.jit
def scale_kernel(values_ptr, factor_ptr, size, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor == 1.0:
        return
    for block in range(tl.program_id(0), tl.cdiv(size, BLOCK), tl.num_programs(0)):
        i = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values_ptr + i, mask=i < size, other=0.0).to(tl.float32)
        tl.store(values_ptr + i, (value * factor).to(values_ptr.dtype.element_ty), mask=i < size)
