"""What a run says of itself: `metrics.jsonl`, a line a step, the same for equal runs; `timing.jsonl`, which is not."""

import time
from pathlib import Path
from typing import Any

import msgspec

from postmill.stages.progress import Meter, Progress
from postmill.stages.train.checkpoint import METRICS, TIMING
from postmill.stages.train.plan import Step
from postmill.stages.train.step import Gradient
from postmill.stages.train.survey import Channels


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


def line_of(step: Step, loss: float, lr: float, grad_norm: float) -> dict[str, Any]:
    """A step as `metrics.jsonl` has it."""
    return {
        "step": step.number + 1,
        "epoch": step.epoch,
        "loss": loss,
        "lr": lr,
        "grad_norm": grad_norm,
        "tokens": step.tokens,
        "trained_tokens": step.trained_tokens,
        "normaliser": step.normaliser,
    }


def measured(gradient: Gradient, channels: Channels | None) -> dict[str, Any]:
    """What else a step's line holds: what the objective measured, and the loss of each channel."""
    line: dict[str, Any] = {name: float(value) for name, value in gradient.metrics.items()}
    if channels is not None and gradient.channels is not None:
        sums, counts = gradient.channels.tolist()
        line["channels"] = {n: s / c for n, s, c in zip(channels.names, sums, counts, strict=True) if c}
    return line


def say(line: dict[str, Any], meter: Meter, seconds: float, *, always: bool) -> None:
    left = f", {text}" if (text := meter.left(line["step"])) else ""
    valid = f", validation {line['valid_loss']:.4f}" if "valid_loss" in line else ""
    Progress.say(
        "train",
        f"step {line['step']}/{int(meter.total)}, loss {line['loss']:.4f}{valid}, lr {line['lr']:.2e}, gradient"
        f" {line['grad_norm']:.3f}, {line['tokens'] / max(seconds, 1e-9):,.0f} tokens/s{left}",
        always=always,
    )
