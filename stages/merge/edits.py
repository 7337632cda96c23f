"""What can be done to one weight: small values with one method, each working on some rows of a matrix.

A weight of any shape is a matrix here, its first axis by all others (a stack of experts: all but the last by the last).
An edit that needs no other rows than those it changes lets a weight be computed in blocks that stay in the cache; the
few that need the whole matrix say so (`whole`).
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import msgspec
import numpy as np

F32 = np.ndarray[Any, np.dtype[np.float32]]
I64 = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, Any]


class Edit(Protocol):
    """One change. `whole` says that `apply` must see all rows at once."""

    whole: ClassVar[bool]

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        """Rows from `start` on with the change made, float32; `weight` may be overwritten.

        before: the same rows as they were before any edit.
        """
        ...

    def shape(self) -> tuple[int, ...]:
        """Rows and columns of the weight it is for."""
        ...

    def fits(self, rows: int, columns: int) -> bool: ...


class LowRank(msgspec.Struct, frozen=True):
    """`W += (left @ right) * scale`. left: rows x rank, right: rank x columns."""

    whole: ClassVar[bool] = False
    left: F32
    right: F32
    scale: float

    def shape(self) -> tuple[int, ...]:
        return self.left.shape[0], self.right.shape[1]

    def fits(self, rows: int, columns: int) -> bool:
        return self.shape() == (rows, columns)

    def delta(self, start: int, end: int) -> F32:
        product: F32 = self.left[start:end] @ self.right
        product *= np.float32(self.scale)
        return product

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        weight += self.delta(start, start + len(weight))
        return weight


class Dora(msgspec.Struct, frozen=True):
    """`W = magnitude / |W0 + delta| * (W + delta)`, W0 being the weight before any edit, the norm over each row.

    Source: DoRA, <https://arxiv.org/abs/2402.09353>, section 4.3.
    """

    whole: ClassVar[bool] = False
    delta: LowRank
    magnitude: F32

    def shape(self) -> tuple[int, ...]:
        rows, columns = self.delta.shape()
        return (rows, columns) if len(self.magnitude) == rows else (len(self.magnitude),)

    def fits(self, rows: int, columns: int) -> bool:
        return self.shape() == (rows, columns)

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        delta = self.delta.delta(start, start + len(weight))
        factor = self.magnitude[start : start + len(weight)] / norm(before + delta, 1)
        return factor[:, None] * (weight + delta)


class ColumnDora(msgspec.Struct, frozen=True):
    """DoRA where the layer multiplies from the other side (embeddings, Conv1D): the norm is over each column.

    norms: of W0 + delta, one a column; whoever can read the whole weight sets it before `apply`.
    """

    whole: ClassVar[bool] = False
    delta: LowRank
    magnitude: F32
    norms: F32 | None = None

    def shape(self) -> tuple[int, ...]:
        rows, columns = self.delta.shape()
        return (rows, columns) if len(self.magnitude) == columns else (len(self.magnitude),)

    def fits(self, rows: int, columns: int) -> bool:
        return self.shape() == (rows, columns)

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        assert self.norms is not None
        delta = self.delta.delta(start, start + len(weight))
        return (self.magnitude / self.norms)[None, :] * (weight + delta)


class SetRows(msgspec.Struct, frozen=True):
    """`W[index[i]] = values[i]`."""

    whole: ClassVar[bool] = False
    index: I64
    values: F32

    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def fits(self, rows: int, columns: int) -> bool:
        inside = bool((self.index < rows).all()) and bool((self.index >= 0).all())
        return self.values.shape[1:] == (columns,) and inside

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        mine = (self.index >= start) & (self.index < start + len(weight))
        weight[self.index[mine] - start] = self.values[mine]
        return weight


class Add(msgspec.Struct, frozen=True):
    """`W += values * scale`, of the same number of elements."""

    whole: ClassVar[bool] = False
    values: F32
    scale: float

    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def fits(self, rows: int, columns: int) -> bool:
        return self.values.size == rows * columns

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        width = weight.shape[1]
        part = self.values.reshape(-1)[start * width : (start + len(weight)) * width].reshape(weight.shape)
        weight += part * np.float32(self.scale)
        return weight


class Multiply(msgspec.Struct, frozen=True):
    """`W *= factors`: one for each row (rows x 1) or each column (1 x columns)."""

    whole: ClassVar[bool] = False
    factors: F32

    def shape(self) -> tuple[int, ...]:
        return tuple(self.factors.shape)

    def fits(self, rows: int, columns: int) -> bool:
        return self.factors.shape in ((rows, 1), (1, columns))

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        weight *= self.factors[start : start + len(weight)] if self.factors.shape[1] == 1 else self.factors
        return weight


class RowWise(msgspec.Struct, frozen=True):
    """`W[start:end] = function(W[start:end], start)`, for changes that have a formula of their own."""

    whole: ClassVar[bool] = False
    size: tuple[int, int]
    function: Callable[[F32, int], F32]

    def shape(self) -> tuple[int, ...]:
        return self.size

    def fits(self, rows: int, columns: int) -> bool:
        return self.size == (rows, columns)

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        return np.ascontiguousarray(self.function(weight, start), np.float32)


class Whole(msgspec.Struct, frozen=True):
    """`W = function(W)` on the whole matrix: needs memory for it, two or three times in float32."""

    whole: ClassVar[bool] = True
    size: tuple[int, int]
    function: Callable[[F32], F32]

    def shape(self) -> tuple[int, ...]:
        return self.size

    def fits(self, rows: int, columns: int) -> bool:
        return self.size == (rows, columns)

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        return np.ascontiguousarray(self.function(weight), np.float32)


class Part(msgspec.Struct, frozen=True):
    """An edit of some rows of a stack of matrices, as if they were a weight of their own: one expert of many."""

    whole: ClassVar[bool] = False
    edit: Edit
    first: int
    count: int

    def shape(self) -> tuple[int, ...]:
        return self.count, *self.edit.shape()[1:]

    def fits(self, rows: int, columns: int) -> bool:
        return self.first + self.count <= rows and self.edit.fits(self.count, columns)

    def apply(self, weight: F32, before: F32, start: int) -> F32:
        low, high = max(start, self.first), min(start + len(weight), self.first + self.count)
        if low < high:
            mine = slice(low - start, high - start)
            weight[mine] = self.edit.apply(weight[mine].copy(), before[mine], low - self.first)
        return weight


def matrix_shape(shape: tuple[int, ...], edits: list[Edit]) -> tuple[int, int]:
    """Rows and columns that a tensor of `shape` has for its edits."""
    if len(shape) > 2 and any(isinstance(edit, Part) for edit in edits):
        return math.prod(shape[:-1]), shape[-1]
    return (shape or (1,))[0], math.prod(shape[1:])


def norm(values: F32, axis: int) -> F32:
    return np.asarray(np.sqrt(np.square(values, dtype=np.float64).sum(axis=axis)), np.float32)
