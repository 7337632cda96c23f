"""What is done to one weight: a list of edits, applied in float32 to blocks of rows, and rounded once at the end.

A weight of any shape is a matrix here, its first axis by all others. Each edit can work on some rows alone, so a
block of half a megabyte stays in the cache from first read to rounding, and memory does not grow with the model.
NumPy's matrix product sums over the rank in order with fused multiply-adds, as torch's does: results are bit-equal,
whatever the block or the number of threads.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import BAD_DATA, StageError
from postmill.io.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorEntry

F32 = np.ndarray[Any, np.dtype[np.float32]]
BLOCK_ELEMENTS = 128 * 1024
DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
"""Dtypes that can be merged into, and how their bytes are held: bfloat16 has no NumPy dtype, so as its bits."""


class LowRank(msgspec.Struct, frozen=True):
    """`W += (left @ right) * scale`. left: rows x rank, right: rank x columns."""

    left: F32
    right: F32
    scale: float


class Dora(msgspec.Struct, frozen=True):
    """`W = magnitude / |W0 + delta| * (W + delta)`, W0 being the weight before any edit.

    The norm is over each row (`axis` 1), or each column (0) where the layer multiplies from the other side.
    Source: DoRA, <https://arxiv.org/abs/2402.09353>, section 4.3.
    """

    delta: LowRank
    magnitude: F32
    axis: int


class SetRows(msgspec.Struct, frozen=True):
    """`W[index[i]] = values[i]`."""

    index: np.ndarray[Any, np.dtype[np.int64]]
    values: F32


class Add(msgspec.Struct, frozen=True):
    """`W += values * scale`, of the same number of elements."""

    values: F32
    scale: float


Edit = LowRank | Dora | SetRows | Add


def to_float32(raw: memoryview | bytearray, dtype: str) -> F32:
    """The numbers in the bytes of a tensor, flat."""
    held: np.ndarray[Any, Any] = np.frombuffer(raw, DTYPES[dtype])
    if dtype == "BF16":
        wide = held.astype(np.uint32)
        wide <<= 16
        return np.asarray(wide.view(np.float32), np.float32)
    return np.asarray(held, np.float32)


def from_float32(values: F32, dtype: str) -> memoryview:
    """The bytes of `values` rounded to `dtype`, half to even. `values` is overwritten; all must be finite."""
    if dtype == "BF16":
        bits = values.reshape(-1).view(np.uint32)
        tie = bits >> 16
        tie &= 1
        bits += tie
        bits += 0x7FFF
        bits >>= 16
        rounded: np.ndarray[Any, Any] = bits.astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            rounded = values.reshape(-1).astype(DTYPES[dtype])
    return memoryview(rounded.data).cast("B")


class EditedTensor:
    """One weight with its edits, as a source of blocks: tensor `name` of `file`, called `target` in the result."""

    def __init__(self, file: SafetensorsFile, name: str, edits: list[Edit], target: str) -> None:
        self.file, self.name, self.edits, self.target = file, name, edits, target
        self.entry: TensorEntry = file.tensors[name]
        shape = self.entry.shape or (1,)
        self.rows = shape[0]
        self.columns = int(np.prod(shape[1:], dtype=np.int64))
        self._norms = {id(e): self._column_norms(e) for e in edits if isinstance(e, Dora) and e.axis == 0}

    def blocks(self) -> list[tuple[int, int]]:
        """Row ranges of about BLOCK_ELEMENTS each."""
        step = max(1, BLOCK_ELEMENTS // max(1, self.columns))
        return [(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def _load(self, start: int, end: int) -> F32:
        size = DTYPES[self.entry.dtype].itemsize * self.columns
        raw = bytearray((end - start) * size)
        self.file.read_into(self.name, start * size, memoryview(raw))
        return to_float32(raw, self.entry.dtype).reshape(end - start, self.columns)

    def block(self, start: int, end: int) -> F32:
        """Rows start:end with all edits made, float32. Raises StageError (65) if one is not finite."""
        weight = self._load(start, end)
        before = weight.copy() if any(isinstance(edit, Dora) for edit in self.edits[1:]) else weight
        for edit in self.edits:
            if isinstance(edit, LowRank):
                weight += _delta(edit, start, end)
            elif isinstance(edit, Dora):
                delta = _delta(edit.delta, start, end)
                if edit.axis == 1:
                    factor = (edit.magnitude[start:end] / _norm(before + delta, 1))[:, None]
                else:
                    factor = (edit.magnitude / self._norms[id(edit)])[None, :]
                weight = factor * (weight + delta)
            elif isinstance(edit, SetRows):
                here = (edit.index >= start) & (edit.index < end)
                weight[edit.index[here] - start] = edit.values[here]
            else:
                weight += edit.values.reshape(self.rows, self.columns)[start:end] * np.float32(edit.scale)
        # one number tells in most cases, in a third of the time; a sum may also overflow, so then look at each
        if not np.isfinite(weight.sum()) and not np.isfinite(weight).all():
            raise StageError(
                f"{self.file.path}: {self.target} is not finite after the merge; the adapter diverged or is damaged",
                BAD_DATA,
            )
        return weight

    def _column_norms(self, edit: Dora) -> F32:
        total = np.zeros(self.columns, np.float64)
        for start, end in self.blocks():
            total += np.square(self._load(start, end) + _delta(edit.delta, start, end), dtype=np.float64).sum(axis=0)
        return np.sqrt(total).astype(np.float32)


def _delta(edit: LowRank, start: int, end: int) -> F32:
    delta: F32 = edit.left[start:end] @ edit.right
    delta *= np.float32(edit.scale)
    return delta


def _norm(values: F32, axis: int) -> F32:
    return np.asarray(np.sqrt(np.square(values, dtype=np.float64).sum(axis=axis)), np.float32)


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Inside the block NumPy's own BLAS uses no threads of its own, so that ours do not wait for each other's.

    Products of rank 16 are too small to share: OpenBLAS's threads spin for work five times as long as they work (two
    cores, 2026-11-22: 17 s of processor time against 3.4 s for a model of 1.2 GB). Does nothing under another BLAS.
    """
    before = []
    maps = Path("/proc/self/maps")
    words = {line.split()[-1] for line in maps.read_text().splitlines()} if maps.exists() else set()
    for path in sorted(word for word in words if "openblas" in word):
        library = ctypes.CDLL(path)
        for name in ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads"):
            get, put = getattr(library, name.format("get"), None), getattr(library, name.format("set"), None)
            if get and put:
                before.append((put, get()))
                put(1)
                break
    try:
        yield
    finally:
        for put, num_threads in before:
            put(num_threads)


def write_edited(tensor: EditedTensor, writer: SafetensorsWriter, dtype: str, pool: ThreadPoolExecutor) -> None:
    """Compute a weight block by block on the pool and put it into `writer`, rounded to `dtype`."""
    row_bytes = tensor.columns * DTYPES[dtype].itemsize

    def one(span: tuple[int, int]) -> None:
        data = from_float32(tensor.block(*span), dtype)
        if dtype == "F16" and not np.isfinite(np.frombuffer(data, np.float16)).all():
            raise StageError(
                f"{tensor.target}: the merged weight is too large for float16; convert the base to bfloat16"
            )
        writer.write(tensor.target, data, span[0] * row_bytes)

    for _ in pool.map(one, tensor.blocks()):
        pass
