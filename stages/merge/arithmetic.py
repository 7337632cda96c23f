"""One weight and its edits: read, changed in float32 block by block, and rounded once at the end.

A block of half a megabyte stays in the cache from first read to rounding, and memory does not grow with the model.
NumPy's matrix product sums over the rank in order with fused multiply-adds, as torch's does for most shapes: results
are the same for any number of threads, and within one float32 digit of PEFT's.
"""

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import BAD_DATA, StageError
from postmill.io.safetensors_file import SafetensorsFile, SafetensorsWriter, TensorEntry
from postmill.stages.merge.edits import F32, ColumnDora, Dora, Edit, Part, matrix_shape

BLOCK_ELEMENTS = 128 * 1024
DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
"""Dtypes that can be merged into, and how their bytes are held: bfloat16 has no NumPy dtype, so as its bits."""


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
        self.file, self.name, self.target = file, name, target
        self.entry: TensorEntry = file.tensors[name]
        self.rows, self.columns = matrix_shape(self.entry.shape, edits)
        self._keeps_original = any(
            isinstance(edit.edit if isinstance(edit, Part) else edit, Dora) for edit in edits[1:]
        )
        self._whole = any(edit.whole for edit in edits)
        self.edits = [self._with_norms(edit) if isinstance(edit, ColumnDora) else edit for edit in edits]

    def blocks(self) -> list[tuple[int, int]]:
        """Row ranges of about BLOCK_ELEMENTS each, or one where an edit needs all rows."""
        if self._whole:
            return [(0, self.rows)]
        return self._row_ranges()

    def _row_ranges(self) -> list[tuple[int, int]]:
        step = max(1, BLOCK_ELEMENTS // max(1, self.columns))
        return [(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]

    def load(self, start: int, end: int) -> F32:
        """Rows start:end as they were, float32."""
        size = DTYPES[self.entry.dtype].itemsize * self.columns
        raw = bytearray((end - start) * size)
        self.file.read_into(self.name, start * size, memoryview(raw))
        return to_float32(raw, self.entry.dtype).reshape(end - start, self.columns)

    def block(self, start: int, end: int) -> F32:
        """Rows start:end with all edits made, float32. Raises StageError (65) if one is not finite."""
        weight = self.load(start, end)
        before = weight.copy() if self._keeps_original else weight
        for edit in self.edits:
            weight = edit.apply(weight, before, start)
        # one number tells in most cases, in a third of the time; a sum may also overflow, so then look at each
        if not np.isfinite(weight.sum()) and not np.isfinite(weight).all():
            raise StageError(
                f"{self.file.path}: {self.target} is not finite after the merge; the adapter diverged or is damaged",
                BAD_DATA,
            )
        return weight

    def _with_norms(self, edit: ColumnDora) -> ColumnDora:
        total = np.zeros(self.columns, np.float64)
        for start, end in self._row_ranges():
            part = self.load(start, end) + edit.delta.delta(start, end)
            total += np.square(part, dtype=np.float64).sum(axis=0)
        return msgspec.structs.replace(edit, norms=np.sqrt(total).astype(np.float32))


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


def write_edited(tensor: EditedTensor, writer: SafetensorsWriter, dtype: str, pool: ThreadPoolExecutor) -> bool:
    """Compute a weight block by block on the pool and put it into `writer`, rounded to `dtype`.

    Returns whether any of its numbers is another than before the edits.
    """
    row_bytes = tensor.columns * DTYPES[dtype].itemsize
    changed = threading.Event()

    def one(span: tuple[int, int]) -> None:
        data = from_float32(tensor.block(*span), dtype)
        if dtype == "F16" and not np.isfinite(np.frombuffer(data, np.float16)).all():
            raise StageError(
                f"{tensor.target}: the merged weight is too large for float16; convert the base to bfloat16"
            )
        writer.write(tensor.target, data, span[0] * row_bytes)
        if not changed.is_set() and data != from_float32(tensor.load(*span), dtype):
            changed.set()

    for _ in pool.map(one, tensor.blocks()):
        pass
    return changed.is_set()
