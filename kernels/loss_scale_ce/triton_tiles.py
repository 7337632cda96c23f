"""What the GPU kernels share: tiles of matrices, and products of them. Importing this compiles nothing.

Matrices that the products read are tensor descriptors where the GPU has a copy engine for them (Hopper and later), and
pointers where it has not. Either way a tile may reach past the edges and finds zeros there.
"""

# Triton reads annotations as types, hence no `from __future__ import annotations`, and its builtins have no stubs.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator"

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Matrix(NamedTuple):
    """A matrix as the kernels read and write it. A descriptor knows the rest too: only a pointer asks for it."""

    entries: Any
    """A tensor descriptor, or a pointer to rows of consecutive entries."""
    num_rows: Any
    num_columns: Any
    stride: Any
    """Entries from one row to the next."""


@triton.jit
def tile_of(program, num_m, num_n, GROUP_M: tl.constexpr):
    """(m, n) of a program: groups of GROUP_M row tiles share each weight tile while it is in the L2 cache."""
    per_group = GROUP_M * num_n
    first_m = (program // per_group) * GROUP_M
    group_m = tl.minimum(num_m - first_m, GROUP_M)
    within = program % per_group
    return first_m + within % group_m, within // group_m


@triton.jit
def load_tile(matrix, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """ROWS x COLUMNS of a `Matrix` from (row, column) on; 0 outside."""
    if isinstance(matrix.entries, tl.tensor_descriptor):
        return matrix.entries.load([row, column])
    else:  # not after it: Triton drops the branch of an if that it does not take, and nothing else
        r, c = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
        at = matrix.entries + r.to(tl.int64)[:, None] * matrix.stride + c[None, :]
        return tl.load(at, mask=(r < matrix.num_rows)[:, None] & (c < matrix.num_columns)[None, :], other=0.0)


@triton.jit
def store_tile(matrix, tile, row, column):
    """The same the other way."""
    if isinstance(matrix.entries, tl.tensor_descriptor):
        matrix.entries.store([row, column], tile.to(matrix.entries.dtype))
    else:
        r, c = row + tl.arange(0, tile.shape[0]), column + tl.arange(0, tile.shape[1])
        at = matrix.entries + r.to(tl.int64)[:, None] * matrix.stride + c[None, :]
        mask = (r < matrix.num_rows)[:, None] & (c < matrix.num_columns)[None, :]
        tl.store(at, tile.to(matrix.entries.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    if UPCAST:  # Triton's interpreter multiplies bfloat16 wrongly; tests convert first.
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)
