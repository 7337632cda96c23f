"""The GPU kernels of the weighted cross-entropy. `triton_host.py` launches them; importing this compiles nothing.

Letters: A active rows, gathered to the front of buffers of R rows; V vocabulary; H hidden size. The number of active
rows lives on the device: grids are sized for R, and programs beyond the last active row return at once, so the host
never waits for it. Nothing is added atomically: partial results have one writer each and are joined in a fixed order.

    logits_kernel         z tile -> (max, sum e, sum z, sum e z) of each row of the tile; E = exp(z - max) if stored
    reduce_kernel         tiles of a row -> lse, target, mean, expected, max
    dz_kernel             z tile again, given lse -> dz                        (where E was not stored)
    grad_hidden_kernel    dX = dz W      } dz as it was written, or made from E while it is loaded:
    grad_weight_kernel    dW = dz^T X    } dz = E exp(max_tile - lse) a + c, plus b at the target

Sums and accumulators are float32. Operands of the products have the dtype of the inputs: that is where E and dz are
rounded. Coefficients come divided by their largest magnitude, `unit`, which the products multiply back at the end, so
that a float16 dz does not vanish under a large denominator.
"""

# Triton reads annotations as types, hence no `from __future__ import annotations`, and its builtins have no stubs.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"
# ruff: noqa: PLR0917

import triton
import triton.language as tl


@triton.jit
def _tile_of(program, num_m, num_n, GROUP_M: tl.constexpr):
    """(m, n) of a program: groups of GROUP_M row tiles share each weight tile while it is in the L2 cache."""
    per_group = GROUP_M * num_n
    first_m = (program // per_group) * GROUP_M
    group_m = tl.minimum(num_m - first_m, GROUP_M)
    within = program % per_group
    return first_m + within % group_m, within // group_m


@triton.jit
def _dot(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    if UPCAST:  # Triton's interpreter multiplies bfloat16 wrongly; tests convert first.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _logits(
    x_ptr,
    w_ptr,
    bias_ptr,
    m,
    n,
    count,
    vocab_size,
    scale,
    softcap,
    H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z of rows m and vocabulary entries n, float32; -inf beyond the vocabulary."""
    k = tl.arange(0, BLOCK_K)
    # Rows past the last active one are read from row 0 and written nowhere.
    x_row = x_ptr + tl.where(m < count, m, 0).to(tl.int64)[:, None] * H
    w_row = w_ptr + tl.where(n < vocab_size, n, 0).to(tl.int64)[None, :] * H
    acc = tl.zeros((m.shape[0], n.shape[0]), tl.float32)
    for k0 in range(0, H, BLOCK_K):
        if H % BLOCK_K == 0:
            x = tl.load(x_row + (k0 + k)[None, :])
            w = tl.load(w_row + (k0 + k)[:, None])
        else:
            x = tl.load(x_row + (k0 + k)[None, :], mask=(k0 + k < H)[None, :], other=0.0)
            w = tl.load(w_row + (k0 + k)[:, None], mask=(k0 + k < H)[:, None], other=0.0)
        acc = _dot(x, w, acc, UPCAST, PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + n, mask=n < vocab_size, other=0.0).to(tl.float32)[None, :]
    z = acc * scale
    if HAS_CAP:
        u = z / softcap
        decay = tl.exp(-2.0 * tl.abs(u))
        t = (1.0 - decay) / (1.0 + decay)
        z = softcap * tl.where(u < 0, -t, t)
    return tl.where((n < vocab_size)[None, :], z, float("-inf"))


@triton.jit
def logits_kernel(
    x_ptr,  # (R, H) gathered rows
    w_ptr,  # (V, H)
    bias_ptr,  # (V) or unused
    targets_ptr,  # (R)
    count_ptr,  # (1) active rows in all
    partials_ptr,  # (4, tiles, R) float32 out: max, sum e, sum z, sum e z
    target_ptr,  # (R) float32 out, zeroed before
    stored_ptr,  # (R, V) out or unused
    first_row,
    num_rows,
    vocab_size,
    scale,
    softcap,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    WANT_SUMS: tl.constexpr,
    STORE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    num_n = tl.cdiv(vocab_size, BLOCK_N)
    pid_m, pid_n = _tile_of(tl.program_id(0), tl.cdiv(num_rows, BLOCK_M), num_n, GROUP_M)
    if pid_m * BLOCK_M >= count:
        return
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    z = _logits(
        x_ptr,
        w_ptr,
        bias_ptr,
        m,
        n,
        count,
        vocab_size,
        scale,
        softcap,
        H,
        BLOCK_K,
        HAS_BIAS,
        HAS_CAP,
        UPCAST,
        PRECISION,
    )
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
    to = partials_ptr + pid_n * num_rows + m
    plane = num_n * num_rows
    tl.store(to, top, mask=is_row)
    tl.store(to + plane, tl.sum(e, 1), mask=is_row)
    if WANT_SUMS:
        in_vocab = (n < vocab_size)[None, :]
        tl.store(to + 2 * plane, tl.sum(tl.where(in_vocab, z, 0.0), 1), mask=is_row)
        tl.store(to + 3 * plane, tl.sum(tl.where(e == 0.0, 0.0, e * z), 1), mask=is_row)
    if STORE:
        at = stored_ptr + m.to(tl.int64)[:, None] * vocab_size + n[None, :]
        tl.store(at, e.to(stored_ptr.dtype.element_ty), mask=is_row[:, None] & (n < vocab_size)[None, :])


@triton.jit
def reduce_kernel(
    partials_ptr,  # (4, tiles, R)
    targets_ptr,  # (R)
    target_ptr,  # (R)
    count_ptr,
    stats_ptr,  # (5, R) float32 out: lse, target, mean, expected, max
    first_row,
    num_rows,
    num_tiles,
    vocab_size,
    BLOCK_M: tl.constexpr,
    WANT_SUMS: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    if tl.program_id(0) * BLOCK_M >= count:
        return
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = m < count
    plane = num_tiles * num_rows
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    plain = tl.zeros((BLOCK_M,), tl.float32)
    product = tl.zeros((BLOCK_M,), tl.float32)
    for tile in range(num_tiles):
        of = partials_ptr + tile * num_rows + m
        tile_top = tl.load(of, mask=is_row, other=0.0)
        tile_total = tl.load(of + plane, mask=is_row, other=0.0)
        # A NaN in the tile is in its sum, whatever the maximum made of it.
        new_top = tl.maximum(top, tile_top)
        old_factor = tl.where(top == new_top, 1.0, tl.exp(top - new_top))
        factor = tl.where(tile_top == new_top, 1.0, tl.exp(tile_top - new_top))
        total = total * old_factor + tile_total * factor
        if WANT_SUMS:
            plain += tl.load(of + 2 * plane, mask=is_row, other=0.0)
            product = product * old_factor + tl.load(of + 3 * plane, mask=is_row, other=0.0) * factor
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
def dz_kernel(
    x_ptr,  # (R, H)
    w_ptr,  # (N, H): a slice of the vocabulary
    bias_ptr,
    targets_ptr,  # (R), relative to the slice
    count_ptr,
    factors_ptr,  # (5, R) float32: lse, a, e, b, c
    dz_ptr,  # (R, N) out
    num_rows,
    vocab_size,  # N
    scale,
    softcap,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr), num_rows)
    num_n = tl.cdiv(vocab_size, BLOCK_N)
    pid_m, pid_n = _tile_of(tl.program_id(0), tl.cdiv(num_rows, BLOCK_M), num_n, GROUP_M)
    if pid_m * BLOCK_M >= count:
        return
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    z = _logits(
        x_ptr,
        w_ptr,
        bias_ptr,
        m,
        n,
        count,
        vocab_size,
        scale,
        softcap,
        H,
        BLOCK_K,
        HAS_BIAS,
        HAS_CAP,
        UPCAST,
        PRECISION,
    )
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
    if HAS_CAP:
        dz *= 1.0 - (z / softcap) * (z / softcap)
    at = dz_ptr + m.to(tl.int64)[:, None] * vocab_size + n[None, :]
    tl.store(at, dz.to(dz_ptr.dtype.element_ty), mask=is_row[:, None] & (n < vocab_size)[None, :])


@triton.jit
def _load_dz(dz_ptr, targets_ptr, factors_ptr, tops_ptr, tile, m, n, count, num_rows, vocab_size, STORED: tl.constexpr):
    """dz of rows m and entries n, float32, 0 outside; `tile` is the tile of the forward pass that n lies in."""
    inside = (m < count)[:, None] & (n < vocab_size)[None, :]
    dz = tl.load(dz_ptr + m.to(tl.int64)[:, None] * vocab_size + n[None, :], mask=inside, other=0.0)
    dz = dz.to(tl.float32)
    if STORED:
        is_row = m < count
        top = tl.load(tops_ptr + tile * num_rows + m, mask=is_row, other=0.0)
        lse = tl.load(factors_ptr + m, mask=is_row, other=0.0)
        a = tl.load(factors_ptr + num_rows + m, mask=is_row, other=0.0)
        b = tl.load(factors_ptr + 3 * num_rows + m, mask=is_row, other=0.0)
        c = tl.load(factors_ptr + 4 * num_rows + m, mask=is_row, other=0.0)
        y = tl.load(targets_ptr + m, mask=is_row, other=-1)
        # `top` is -inf for a tile of barred entries: its E is 0 and so is exp(-inf - lse).
        dz = dz * (tl.exp(top - lse) * a)[:, None] + c[:, None]
        dz += tl.where(y[:, None] == n[None, :], b[:, None], 0.0)
        dz = tl.where(inside, dz, 0.0)
    return dz


@triton.jit
def grad_hidden_kernel(
    dz_ptr,  # (R, N): dz, or E where STORED
    w_ptr,  # (N, H)
    targets_ptr,
    count_ptr,
    factors_ptr,
    tops_ptr,  # (tiles, R): the first plane of `partials`
    unit_ptr,  # (1) float32
    out_ptr,  # (R, H) out, in the order of the gathered rows
    first_row,
    num_rows,
    vocab_size,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    TILE_N: tl.constexpr,
    STORED: tl.constexpr,
    ADD: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    num_h = tl.cdiv(H, BLOCK_H)
    pid_m, pid_h = tl.program_id(0) // num_h, tl.program_id(0) % num_h
    if pid_m * BLOCK_M >= count:
        return
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    h = pid_h * BLOCK_H + tl.arange(0, BLOCK_H)
    acc = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    for n0 in range(0, vocab_size, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        dz = _load_dz(
            dz_ptr, targets_ptr, factors_ptr, tops_ptr, n0 // TILE_N, m, n, count, num_rows, vocab_size, STORED
        )
        w_mask = (n < vocab_size)[:, None] & (h < H)[None, :]
        w = tl.load(w_ptr + n.to(tl.int64)[:, None] * H + h[None, :], mask=w_mask, other=0.0)
        acc = _dot(dz.to(w.dtype), w, acc, UPCAST, PRECISION)
    acc *= tl.load(unit_ptr)
    at = out_ptr + m.to(tl.int64)[:, None] * H + h[None, :]
    mask = (m < count)[:, None] & (h < H)[None, :]
    if ADD:
        acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def grad_weight_kernel(
    dz_ptr,  # (R, N): dz, or E where STORED
    x_ptr,  # (R, H)
    targets_ptr,
    count_ptr,
    factors_ptr,
    tops_ptr,
    unit_ptr,
    out_ptr,  # (N, H) out
    bias_out_ptr,  # (N) float32 out, or unused
    first_row,
    num_rows,
    vocab_size,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    TILE_N: tl.constexpr,
    STORED: tl.constexpr,
    ADD: tl.constexpr,
    WANT_WEIGHT: tl.constexpr,
    WANT_BIAS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.maximum(tl.minimum(tl.load(count_ptr) - first_row, num_rows), 0)
    if ADD and count == 0:
        return
    num_h = tl.cdiv(H, BLOCK_H) if WANT_WEIGHT else 1
    pid_n, pid_h = tl.program_id(0) // num_h, tl.program_id(0) % num_h
    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    h = pid_h * BLOCK_H + tl.arange(0, BLOCK_H)
    acc = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    bias_acc = tl.zeros((BLOCK_N,), tl.float32)
    tile = pid_n * BLOCK_N // TILE_N
    for m0 in range(0, count, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        dz = _load_dz(
            dz_ptr,
            targets_ptr,
            factors_ptr,
            tops_ptr,
            tile,
            m,
            n,
            count,
            num_rows,
            vocab_size,
            STORED,
        )
        if WANT_BIAS:
            bias_acc += tl.sum(dz, 0)
        if WANT_WEIGHT:
            # Rows past the count may hold NaN, and 0 * NaN is NaN: they are masked, not multiplied by 0.
            x_mask = (m < count)[:, None] & (h < H)[None, :]
            x = tl.load(x_ptr + m.to(tl.int64)[:, None] * H + h[None, :], mask=x_mask, other=0.0)
            acc = _dot(tl.trans(dz.to(x.dtype)), x, acc, UPCAST, PRECISION)
    unit = tl.load(unit_ptr)
    if WANT_WEIGHT:
        at = out_ptr + n.to(tl.int64)[:, None] * H + h[None, :]
        mask = (n < vocab_size)[:, None] & (h < H)[None, :]
        acc *= unit
        if ADD:
            acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=mask)
    if WANT_BIAS and pid_h == 0:
        bias_acc *= unit
        if ADD:
            bias_acc += tl.load(bias_out_ptr + n, mask=n < vocab_size, other=0.0)
        tl.store(bias_out_ptr + n, bias_acc, mask=n < vocab_size)
