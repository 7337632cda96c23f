"""GPU kernels that make logits, tile by tile: statistics of each row, and dz. Importing this compiles nothing.

Letters: A active rows, gathered to the front of buffers of R rows; V vocabulary, N a slice of it; H hidden size. The
number of active rows lives on the device, so the host never waits for it: programs read it, and take tiles of active
rows in turns or return at once. Nothing is added atomically: partial results have one writer each and are joined in a
fixed order.

    logits_kernel         z tile -> (max, sum e, sum z, sum e z) of each row of the tile; E = exp(z - max) if stored
    reduce_kernel         tiles of a row -> lse, target, mean, expected, max
    stored_dz_kernel      E -> dz = E exp(max_tile - lse) a + c, plus b at the target, in place
    dz_kernel             z tile again, given lse -> dz                        (where E was not stored)

Sums are float32. E and dz are rounded to the dtype of the inputs, as operands of the products in `triton_gradients.py`.
Rows of X from A on are zeros, and so are rows of dz up to a whole tile.
FLATTEN makes one loop of tiles and their products: loads for the next tile run while this one is being finished.
"""

# Triton reads annotations as types, hence no `from __future__ import annotations`, and its builtins have no stubs.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
# ruff: noqa: PLR0917

import triton
import triton.language as tl

from postmill.kernels.loss_scale_ce.triton_tiles import Matrix, dot, load_tile, store_tile, tile_of


@triton.jit
def _logits(
    x,
    w,
    bias_ptr,
    pid_m,
    pid_n,
    scale,
    softcap,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z of a tile, float32; -inf beyond the vocabulary. `x` and `w` are `Matrix`."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, x.num_columns, BLOCK_K):
        x_tile = load_tile(x, pid_m * BLOCK_M, k0, BLOCK_M, BLOCK_K)
        w_tile = load_tile(w, pid_n * BLOCK_N, k0, BLOCK_N, BLOCK_K)
        acc = dot(x_tile, tl.trans(w_tile), acc, UPCAST, PRECISION)
    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < w.num_rows, other=0.0).to(tl.float32)[None, :]
    z = acc * scale
    if softcap is not None:
        u = z / softcap
        decay = tl.exp(-2.0 * tl.abs(u))
        t = (1.0 - decay) / (1.0 + decay)
        z = softcap * tl.where(u < 0, -t, t)
    return tl.where((n < w.num_rows)[None, :], z, float("-inf"))


@triton.jit
def logits_kernel(
    x,  # (R, H) gathered rows
    w,  # (V, H)
    bias_ptr,  # (V) or None
    targets_ptr,  # (R)
    count_ptr,  # (1) active rows in all
    partials_ptr,  # (2 or 4, tiles, R) float32 out: max, sum e, and if wanted sum z, sum e z
    target_ptr,  # (R) float32 out, zeroed before
    stored,  # (R, V) out or None
    first_row,
    num_rows,
    vocab_size,
    x_stride,
    w_stride,
    stored_stride,
    scale,
    softcap,  # or None
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    WANT_SUMS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    num_n = tl.cdiv(vocab_size, BLOCK_N)
    num_m = tl.cdiv(tl.maximum(count, 0), BLOCK_M)
    x, w = Matrix(x, num_rows, H, x_stride), Matrix(w, vocab_size, H, w_stride)
    for tile in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=FLATTEN):
        pid_m, pid_n = tile_of(tile, num_m, num_n, GROUP_M)
        z = _logits(x, w, bias_ptr, pid_m, pid_n, scale, softcap, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST, PRECISION)
        m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
        is_row = m < count
        # In this order z is dead once E exists, unless its sums are wanted: two such tiles do not fit in the registers.
        y = tl.load(targets_ptr + m, mask=is_row, other=-1)
        is_target = (y >= pid_n * BLOCK_N) & (y < (pid_n + 1) * BLOCK_N) & (y < vocab_size)
        z_target = tl.sum(tl.where(y[:, None] == n[None, :], z, 0.0), 1)
        tl.store(target_ptr + m, z_target, mask=is_row & is_target)
        top = tl.max(z, 1)
        # A tile of barred entries, all -inf: exp(-inf - 0) is the 0 we want, exp(-inf - -inf) would be NaN.
        shift = tl.where(top == float("-inf"), 0.0, top)
        e = tl.exp(z - shift[:, None])
        plane = tl.cast(num_n, tl.int64) * num_rows
        to = partials_ptr + tl.cast(pid_n, tl.int64) * num_rows + m
        tl.store(to, top, mask=is_row)
        tl.store(to + plane, tl.sum(e, 1), mask=is_row)
        if WANT_SUMS:
            in_vocab = (n < vocab_size)[None, :]
            tl.store(to + 2 * plane, tl.sum(tl.where(in_vocab, z, 0.0), 1), mask=is_row)
            tl.store(to + 3 * plane, tl.sum(tl.where(e == 0.0, 0.0, e * z), 1), mask=is_row)
        if stored is not None:
            store_tile(Matrix(stored, num_rows, vocab_size, stored_stride), e, pid_m * BLOCK_M, pid_n * BLOCK_N)


@triton.jit
def reduce_kernel(
    partials_ptr,  # (2 or 4, tiles, R)
    targets_ptr,  # (R)
    target_ptr,  # (R)
    count_ptr,
    stats_ptr,  # (5, R) float32 out: lse, target, mean, expected, max
    first_row,
    num_rows,
    num_tiles,
    vocab_size,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,  # tiles taken at once
    WANT_SUMS: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    if tl.program_id(0) * BLOCK_M >= count:
        return
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = m < count
    plane = tl.cast(num_tiles, tl.int64) * num_rows
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    plain = tl.zeros((BLOCK_M,), tl.float32)
    product = tl.zeros((BLOCK_M,), tl.float32)
    for first_tile in range(0, num_tiles, BLOCK_T):
        tile = first_tile + tl.arange(0, BLOCK_T)
        of = partials_ptr + tile.to(tl.int64)[:, None] * num_rows + m[None, :]
        inside = (tile < num_tiles)[:, None] & is_row[None, :]
        tops = tl.load(of, mask=inside, other=float("-inf"))
        # A NaN in a tile is in its sum, whatever the maximum made of it.
        new_top = tl.maximum(top, tl.max(tops, 0))
        old_factor = tl.where(top == new_top, 1.0, tl.exp(top - new_top))
        factors = tl.where(tops == new_top[None, :], 1.0, tl.exp(tops - new_top[None, :]))
        total = total * old_factor + tl.sum(tl.load(of + plane, mask=inside, other=0.0) * factors, 0)
        if WANT_SUMS:
            plain += tl.sum(tl.load(of + 2 * plane, mask=inside, other=0.0), 0)
            of_product = tl.load(of + 3 * plane, mask=inside, other=0.0)
            product = product * old_factor + tl.sum(of_product * factors, 0)
        top = new_top
    # A target outside the vocabulary cannot raise here; NaN is the loudest thing a device can say.
    y = tl.load(targets_ptr + m, mask=is_row, other=-1)
    target = tl.where(y < vocab_size, tl.load(target_ptr + m, mask=is_row, other=0.0), float("nan"))
    tl.store(stats_ptr + m, top + tl.log(total), mask=is_row)
    tl.store(stats_ptr + num_rows + m, target, mask=is_row)
    tl.store(stats_ptr + 2 * num_rows + m, plain / vocab_size, mask=is_row)
    tl.store(stats_ptr + 3 * num_rows + m, product / total, mask=is_row)
    tl.store(stats_ptr + 4 * num_rows + m, top, mask=is_row)


@triton.jit
def stored_dz_kernel(
    dz_ptr,  # (R, V): E, dz out
    targets_ptr,
    count_ptr,
    factors_ptr,  # (5, R) float32: lse, a, e, b, c
    tops_ptr,  # (tiles, R): the first plane of `partials`
    first_row,
    num_rows,
    vocab_size,
    row_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,  # a tile of the forward pass
    PAD_M: tl.constexpr,  # rows of dz are zero from the last active one to a multiple of this
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    num_n = tl.cdiv(vocab_size, BLOCK_N)
    num_m = tl.cdiv(tl.maximum(count, 1), PAD_M) * (PAD_M // BLOCK_M)
    for tile in range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        pid_m, pid_n = tile // num_n, tile % num_n
        m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
        is_row = m < count
        at = dz_ptr + m.to(tl.int64)[:, None] * row_stride + n[None, :]
        in_vocab = (n < vocab_size)[None, :]
        e = tl.load(at, mask=is_row[:, None] & in_vocab, other=0.0).to(tl.float32)
        top = tl.load(tops_ptr + tl.cast(pid_n, tl.int64) * num_rows + m, mask=is_row, other=0.0)
        lse = tl.load(factors_ptr + m, mask=is_row, other=0.0)
        a = tl.load(factors_ptr + num_rows + m, mask=is_row, other=0.0)
        b = tl.load(factors_ptr + 3 * num_rows + m, mask=is_row, other=0.0)
        c = tl.load(factors_ptr + 4 * num_rows + m, mask=is_row, other=0.0)
        y = tl.load(targets_ptr + m, mask=is_row, other=-1)
        # `top` is -inf for a tile of barred entries: its E is 0 and so is exp(-inf - lse).
        dz = e * (tl.exp(top - lse) * a)[:, None] + c[:, None]
        dz += tl.where(y[:, None] == n[None, :], b[:, None], 0.0)
        tl.store(at, dz.to(dz_ptr.dtype.element_ty), mask=(m < num_rows)[:, None] & in_vocab)


@triton.jit
def dz_kernel(
    x,  # (R, H)
    w,  # (N, H): a slice of the vocabulary
    bias_ptr,  # (N) or None
    targets_ptr,  # (R), relative to the slice
    count_ptr,
    factors_ptr,  # (5, R) float32: lse, a, e, b, c
    dz_out,  # (R, N)
    num_rows,
    vocab_size,  # N
    x_stride,
    w_stride,
    dz_stride,
    scale,
    softcap,  # or None
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr), num_rows)
    num_n = tl.cdiv(vocab_size, BLOCK_N)
    num_m = tl.cdiv(tl.maximum(count, 1), BLOCK_M)
    x, w = Matrix(x, num_rows, H, x_stride), Matrix(w, vocab_size, H, w_stride)
    for tile in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=FLATTEN):
        pid_m, pid_n = tile_of(tile, num_m, num_n, GROUP_M)
        z = _logits(x, w, bias_ptr, pid_m, pid_n, scale, softcap, BLOCK_M, BLOCK_N, BLOCK_K, UPCAST, PRECISION)
        m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
        n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
        is_row = m < count
        lse = tl.load(factors_ptr + m, mask=is_row, other=0.0)
        a = tl.load(factors_ptr + num_rows + m, mask=is_row, other=0.0)
        e = tl.load(factors_ptr + 2 * num_rows + m, mask=is_row, other=0.0)
        b = tl.load(factors_ptr + 3 * num_rows + m, mask=is_row, other=0.0)
        c = tl.load(factors_ptr + 4 * num_rows + m, mask=is_row, other=0.0)
        y = tl.load(targets_ptr + m, mask=is_row, other=-1)
        p = tl.exp(z - lse[:, None])
        dz = tl.where(p == 0.0, 0.0, p * (a[:, None] + e[:, None] * z)) + c[:, None]
        dz += tl.where(y[:, None] == n[None, :], b[:, None], 0.0)
        if softcap is not None:
            dz *= 1.0 - (z / softcap) * (z / softcap)
        # Rows behind the last active one have no lse: without this they might be inf.
        dz = tl.where(is_row[:, None], dz, 0.0)
        store_tile(Matrix(dz_out, num_rows, vocab_size, dz_stride), dz, pid_m * BLOCK_M, pid_n * BLOCK_N)
