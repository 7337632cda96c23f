"""The same tensor of several models, read block by block: what every way of mixing stands on.

A method may first ask for sums over the whole tensor (`total`): norms, histograms. They are taken block by block on the
pool and added in the order of the blocks, so results do not depend on the number of threads.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np

from postmill.io.safetensors_file import SafetensorsFile
from postmill.stages.merge.arithmetic import BLOCK_ELEMENTS, DTYPES, to_float32
from postmill.stages.merge.edits import F32, Array

_AHEAD = 16
_NOTHING: F32 = np.zeros(0, np.float32)


class Block(msgspec.Struct, frozen=True):
    """Elements from `start` on, flat float32, of each model and of the base."""

    start: int
    parts: list[F32]
    base: F32 | None

    def delta(self, part: int) -> F32:
        """What a model is apart from the base."""
        assert self.base is not None
        return self.parts[part] - self.base


Mix = Callable[[Block], F32]


class Group:
    """One tensor of all models: (file, name) of each, and of the base if there is one."""

    def __init__(
        self,
        target: str,
        parts: list[tuple[SafetensorsFile, str]],
        base: tuple[SafetensorsFile, str] | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.target, self.parts, self.base, self.pool = target, parts, base, pool
        entry = parts[0][0].tensors[parts[0][1]]
        self.shape = entry.shape
        self.size = int(np.prod(entry.shape, dtype=np.int64))
        self.row = int(np.prod(entry.shape[1:], dtype=np.int64)) if len(entry.shape) > 1 else self.size
        self._whole_rows = False

    def by_rows(self) -> None:
        """From now on, blocks hold whole rows of the tensor."""
        self._whole_rows = True

    def spans(self) -> list[tuple[int, int]]:
        step = BLOCK_ELEMENTS
        if self._whole_rows:
            step = max(1, BLOCK_ELEMENTS // max(1, self.row)) * self.row
        return [(start, min(start + step, self.size)) for start in range(0, self.size, step)]

    def block(self, span: tuple[int, int], only: int | None = None) -> Block:
        """The elements of a span, of all models, or of one and the base (the others are empty)."""
        return Block(
            span[0],
            [self._read(part, *span) if only in (None, n) else _NOTHING for n, part in enumerate(self.parts)],
            self._read(self.base, *span) if self.base else None,
        )

    def _read(self, source: tuple[SafetensorsFile, str], start: int, end: int) -> F32:
        file, name = source
        dtype = file.tensors[name].dtype
        size = DTYPES[dtype].itemsize
        raw = bytearray((end - start) * size)
        file.read_into(name, start * size, memoryview(raw))
        return to_float32(raw, dtype)

    def each(self, function: Callable[[Block], Any], only: int | None = None) -> Iterator[Any]:
        """What `function` says of every block, in their order; a few are worked on at a time, so none pile up."""
        waiting: deque[Future[Any]] = deque()
        for span in self.spans():
            waiting.append(self.pool.submit(lambda span=span: function(self.block(span, only))))  # type: ignore[misc]
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def total(self, function: Callable[[Block], Array], only: int | None = None) -> Array:
        """The sum of what `function` says of every block, added in their order."""
        total: Any = 0
        for one in self.each(function, only):
            total = total + one
        return np.asarray(total)
