"""What a run says of itself: `metrics.jsonl`, a line a step, the same for equal runs; `timing.jsonl`, which is not."""

import time
from pathlib import Path
from typing import Any

import msgspec

from postmill.stages.train.checkpoint import METRICS, TIMING


class Record:
    """Collects lines in `folder` as they come, so that a run can be watched; `lines` holds those of this run."""

    def __init__(self, folder: Path | None, before: bytes) -> None:
        """Start after the lines in `before`, which a checkpoint held. Without a folder nothing is written."""
        self.lines: list[dict[str, Any]] = [msgspec.json.decode(line) for line in before.splitlines()]
        self._raw = bytearray(before)
        self._folder = folder
        self._clock = time.perf_counter()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / METRICS).write_bytes(before)

    def add(self, line: dict[str, Any], data_seconds: float) -> float:
        """Append one step's line, and how long it waited for data; returns the seconds since the last."""
        text = msgspec.json.encode(line) + b"\n"
        self.lines.append(line)
        self._raw += text
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        if self._folder is not None:
            self._append(METRICS, text)
            timing = {"step": line["step"], "seconds": round(seconds, 4), "data_seconds": round(data_seconds, 5)}
            self._append(TIMING, msgspec.json.encode(timing) + b"\n")
        return seconds

    def raw(self) -> bytes:
        """All lines as they are in the file."""
        return bytes(self._raw)

    def timing(self) -> bytes:
        """All timing lines so far, those of stopped runs included."""
        path = None if self._folder is None else self._folder / TIMING
        return path.read_bytes() if path is not None and path.exists() else b""

    def _append(self, name: str, text: bytes) -> None:
        assert self._folder is not None
        with (self._folder / name).open("ab") as file:
            file.write(text)
