"""The GPU kernels of the weighted cross-entropy. `triton_host.py` launches them; importing this compiles nothing.

Letters: A active rows, gathered to the front of buffers of R rows; V vocabulary; H hidden size. The number of active
rows lives on the device, so the host never waits for it: programs read it, and take tiles of active rows in turns or
return at once. Nothing is added atomically: partial results have one writer each and are joined in a fixed order.

    logits_kernel         z tile -> (max, sum e, sum z, sum e z) of each row of the tile; E = exp(z - max) if stored
    reduce_kernel         tiles of a row -> lse, target, mean, expected, max
    stored_dz_kernel      E -> dz = E exp(max_tile - lse) a + c, plus b at the target, in place
    dz_kernel             z tile again, given lse -> dz                        (where E was not stored)
    grad_hidden_kernel    dX = dz W, or parts of that sum, where too few tiles would leave the GPU idle
    join_hidden_kernel    the parts -> dX
    grad_weight_kernel    dW = dz^T X
    grad_bias_kernel      sums of the columns of dz
    scale_kernel          gradients times a number, which is 1 nearly always and costs nothing then

Sums and accumulators are float32. Operands of the products have the dtype of the inputs: that is where E and dz are
rounded. Coefficients of a float16 dz come divided by their largest magnitude, `unit`, which the products multiply back
at the end, so that it does not vanish under a large denominator; elsewhere `unit` is 1.

Matrices that the products read are tensor descriptors where the GPU has a copy engine for them (Hopper and later), and
pointers where it has not. Either way a tile may reach past the edges and finds zeros there. Rows of X from A on are
zeros, and so are rows of dz up to a whole tile.
FLATTEN makes one loop of tiles and their products: loads for the next tile run while this one is being finished.
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
def _load_tile(matrix, row, column, num_rows, num_columns, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ROWS x COLUMNS of a descriptor or, given its shape and stride, of a pointer; 0 outside."""
    if isinstance(matrix, tl.tensor_descriptor):
        return matrix.load([row, column])
    else:  # not after it: Triton drops the branch of an if that it does not take, and nothing else
        r, c = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        at = matrix + r.to(tl.int64)[:, None] * stride + c[None, :]
        return tl.load(at, mask=(r < num_rows)[:, None] & (c < num_columns)[None, :], other=0.0)


@triton.jit
def _store_tile(matrix, value, row, column, num_rows, num_columns, stride):
    """The same the other way."""
    if isinstance(matrix, tl.tensor_descriptor):
        matrix.store([row, column], value.to(matrix.dtype))
    else:
        r, c = row + tl.arange(0, value.shape[0]), column + tl.arange(0, value.shape[1])
        at = matrix + r.to(tl.int64)[:, None] * stride + c[None, :]
        mask = (r < num_rows)[:, None] & (c < num_columns)[None, :]
        tl.store(at, value.to(matrix.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    if UPCAST:  # Triton's interpreter multiplies bfloat16 wrongly; tests convert first.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _logits(
    x,
    w,
    bias_ptr,
    pid_m,
    pid_n,
    num_rows,
    vocab_size,
    x_stride,
    w_stride,
    scale,
    softcap,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """z of a tile, float32; -inf beyond the vocabulary."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, H, BLOCK_K):
        x_tile = _load_tile(x, pid_m * BLOCK_M, k0, num_rows, H, x_stride, BLOCK_M, BLOCK_K)
        w_tile = _load_tile(w, pid_n * BLOCK_N, k0, vocab_size, H, w_stride, BLOCK_N, BLOCK_K)
        acc = _dot(x_tile, tl.trans(w_tile), acc, UPCAST, PRECISION)
    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
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
    x,  # (R, H) gathered rows
    w,  # (V, H)
    bias_ptr,  # (V) or unused
    targets_ptr,  # (R)
    count_ptr,  # (1) active rows in all
    partials_ptr,  # (2 or 4, tiles, R) float32 out: max, sum e, and if wanted sum z, sum e z
    target_ptr,  # (R) float32 out, zeroed before
    stored,  # (R, V) out or unused
    first_row,
    num_rows,
    vocab_size,
    x_stride,
    w_stride,
    stored_stride,
    scale,
    softcap,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    WANT_SUMS: tl.constexpr,
    STORE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr) - first_row, num_rows)
    num_n = tl.cdiv(vocab_size, BLOCK_N)
    num_m = tl.cdiv(tl.maximum(count, 0), BLOCK_M)
    for tile in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=FLATTEN):
        pid_m, pid_n = _tile_of(tile, num_m, num_n, GROUP_M)
        z = _logits(
            x,
            w,
            bias_ptr,
            pid_m,
            pid_n,
            num_rows,
            vocab_size,
            x_stride,
            w_stride,
            scale,
            softcap,
            H,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            HAS_BIAS,
            HAS_CAP,
            UPCAST,
            PRECISION,
        )
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
        if STORE:
            _store_tile(stored, e, pid_m * BLOCK_M, pid_n * BLOCK_N, num_rows, vocab_size, stored_stride)


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
    bias_ptr,
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
    softcap,
    H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    FLATTEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    count = tl.minimum(tl.load(count_ptr), num_rows)
    num_n = tl.cdiv(vocab_size, BLOCK_N)
    num_m = tl.cdiv(tl.maximum(count, 1), BLOCK_M)
    for tile in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0), flatten=FLATTEN):
        pid_m, pid_n = _tile_of(tile, num_m, num_n, GROUP_M)
        z = _logits(
            x,
            w,
            bias_ptr,
            pid_m,
            pid_n,
            num_rows,
            vocab_size,
            x_stride,
            w_stride,
            scale,
            softcap,
            H,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            HAS_BIAS,
            HAS_CAP,
            UPCAST,
            PRECISION,
        )
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
        if HAS_CAP:
            dz *= 1.0 - (z / softcap) * (z / softcap)
        # Rows behind the last active one have no lse: without this they might be inf.
        dz = tl.where(is_row[:, None], dz, 0.0)
        _store_tile(dz_out, dz, pid_m * BLOCK_M, pid_n * BLOCK_N, num_rows, vocab_size, dz_stride)


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
    m, h = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_H)
    sums = parts_ptr + item.to(tl.int64) * (BLOCK_M * BLOCK_H) + (m[:, None] * BLOCK_H + h[None, :])
    acc = tl.zeros((BLOCK_M, BLOCK_H), tl.float32) if IS_FIRST else tl.load(sums)
    for n0 in range(part * part_size, tl.minimum((part + 1) * part_size, vocab_size), BLOCK_N):
        dz_tile = _load_tile(dz, pid_m * BLOCK_M, n0, num_rows, vocab_size, dz_stride, BLOCK_M, BLOCK_N)
        w_tile = _load_tile(w, n0, pid_h * BLOCK_H, vocab_size, H, w_stride, BLOCK_N, BLOCK_H)
        acc = _dot(dz_tile, w_tile, acc, UPCAST, PRECISION)
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
    sums_ptr,  # (tiles, BLOCK_H, BLOCK_N) float32, or unused where there is one chunk of rows
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
    IS_CHUNK: tl.constexpr,
    FLATTEN: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    total = tl.load(count_ptr)
    count = tl.maximum(tl.minimum(total - first_row, num_rows), 0)
    if IS_CHUNK and (first_row > 0) and (count == 0):
        return
    num_h = tl.cdiv(H, BLOCK_H)
    num_k = tl.maximum(tl.cdiv(count, BLOCK_M), 1)  # without a row: one product of zeros
    unit = tl.load(unit_ptr)
    for tile in tl.range(tl.program_id(0), tl.cdiv(vocab_size, BLOCK_N) * num_h, tl.num_programs(0), flatten=FLATTEN):
        pid_n, pid_h = tile // num_h, tile % num_h
        n, h = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_H)
        acc = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
        if IS_CHUNK:  # go on from the sum of the chunks before; the last chunk with a row in it rounds
            # Column by column: on sm_90 row by row spills, and a mask instead of the if takes all 255 registers.
            sums = sums_ptr + tl.cast(tile, tl.int64) * (BLOCK_N * BLOCK_H) + (n[:, None] + h[None, :] * BLOCK_N)
            if first_row > 0:
                acc = tl.load(sums)
        for k in range(num_k):
            m = k * BLOCK_M
            dz_tile = _load_tile(dz, m, pid_n * BLOCK_N, num_rows, vocab_size, dz_stride, BLOCK_M, BLOCK_N)
            x_tile = _load_tile(x, m, pid_h * BLOCK_H, num_rows, H, x_stride, BLOCK_M, BLOCK_H)
            acc = _dot(tl.trans(dz_tile), x_tile, acc, UPCAST, PRECISION)
        if IS_CHUNK and (first_row + num_rows < total):
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
