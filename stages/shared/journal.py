"""Replies as they come, beside the artifact, so that a stopped or killed run asks only for the rest."""

from pathlib import Path
from typing import BinaryIO

import msgspec

from postmill.io.json_file import NOT_JSON
from postmill.stages.shared.engine.protocol import Reply


class Journal:
    """A line a batch, after one with the key of the work. What other work left is thrown away, and so is a torn end."""

    def __init__(self, path: Path, key: str) -> None:
        self.replies: dict[str, Reply] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        good = self._read(path, key) if path.exists() else 0
        self._file: BinaryIO = path.open("r+b" if good else "wb")
        if good:
            self._file.truncate(good)
            self._file.seek(good)
        else:
            self._file.write(msgspec.json.encode({"key": key}) + b"\n")

    def _read(self, path: Path, key: str) -> int:
        """Take over whole lines. Returns how many bytes are good; 0 if the file is of other work."""
        lines = path.read_bytes().splitlines(keepends=True)
        if not lines or lines[0] != msgspec.json.encode({"key": key}) + b"\n":
            return 0
        good = len(lines[0])
        for line in lines[1:]:
            try:
                batch = msgspec.json.decode(line, type=list[Reply])
            except NOT_JSON:
                break
            if not line.endswith(b"\n"):
                break
            self.replies |= {reply.key: reply for reply in batch}
            good += len(line)
        return good

    def add(self, batch: list[Reply]) -> None:
        """Keep a batch, as far as the kernel: a killed process loses nothing of it."""
        self._file.write(msgspec.json.encode(batch) + b"\n")
        self._file.flush()
        self.replies |= {reply.key: reply for reply in batch}

    def close(self) -> None:
        self._file.close()
