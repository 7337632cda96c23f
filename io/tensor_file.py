"""Writing a file of tensors that are all known beforehand: the header first, then data in any order, block by block."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from postmill.io.errors import INTERNAL, StageError


class TensorFileWriter:
    """Puts blocks of tensors where the header says they lie. Closing raises StageError (70) on a gap."""

    def __init__(
        self, path: Path, header: bytes, starts: Mapping[str, int], sizes: Mapping[str, int], end: int
    ) -> None:
        """`starts` and `sizes` of tensors by name, and the file's `end`, in bytes. Raises OSError if it is there."""
        self.path = path
        self._start, self._left = dict(starts), dict(sizes)
        self._lock = threading.Lock()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            write_all(self._fd, memoryview(header), 0)
            if end > len(header):
                os.posix_fallocate(self._fd, len(header), end - len(header))
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            os.close(self._fd)

    def write(self, name: str, data: memoryview, offset: int = 0) -> None:
        """Put `data` at byte `offset` of a tensor; each byte once. Blocks may come from several threads."""
        write_all(self._fd, data, self._start[name] + offset)
        self._written(name, len(data))

    def _written(self, name: str, num_bytes: int) -> None:
        with self._lock:
            self._left[name] -= num_bytes

    def close(self) -> None:
        os.close(self._fd)
        unfinished = [name for name, left in self._left.items() if left]
        if unfinished:
            raise StageError(
                f"{self.path}: tensor {unfinished[0]} was not written whole; this is a bug of ours", INTERNAL
            )


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Put all of `data` at a byte offset of an open file."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)
