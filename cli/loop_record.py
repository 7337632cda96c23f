"""What a loop leaves in writing: a line a round, the seconds of its stages, and what each process is at."""

import os
import platform
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from postmill.cli.others import STATUSES
from postmill.io.errors import STOPPED, StageError
from postmill.io.manifest import Artifact

METRICS, TIMING, STATUS = "metrics.jsonl", "timing.jsonl", "status.json"
_OF_TRAIN = (
    "loss",
    "grad_norm",
    "lr",
    "nats",
    "entropy",
    "ratio",
    "clipped",
    "mismatch",
    "mismatch_dropped",
    "kl",
    "mu",
    "demonstrations",
)


class Record:
    """The lines of the rounds that are done, in the loop's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = {}
        """Of the stages of this round, by their sections."""

    def read(self, start: int) -> list[dict[str, Any]]:
        """What the record has of the rounds before `start`."""
        path = self._folder / METRICS
        lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
        return [line for line in lines if line["step"] <= start]

    def write(self, lines: list[dict[str, Any]]) -> None:
        """All lines, and the seconds since the last time."""
        _replace(self._folder / METRICS, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        with (self._folder / TIMING).open("ab") as file:
            file.write(msgspec.json.encode({"step": lines[-1]["step"], "seconds": self.seconds}) + b"\n")
        self.seconds = {}


class OwnStatus:
    """What this process of a loop is at, for `postmill status` and for those that wait for it. Ends with the block."""

    def __init__(self, folder: Path, part: str, rounds: int) -> None:
        self._folder, self._part, self._rounds, self.round = folder, part, rounds, 0

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._part:
            shutil.rmtree(self._folder / STATUSES, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_stop = isinstance(error, StageError) and error.code == STOPPED
        self.say("", "done" if error is None else "stopped" if is_stop else "failed")

    def say(self, stage: str, state: str = "running", *, waiting_for: Path | None = None) -> None:
        """Write it down. waiting_for: a path in the loop's folder."""
        status = {
            "version": 1,
            "state": state,
            "pid": os.getpid(),
            "host": platform.node(),
            "round": self.round,
            "rounds": self._rounds,
            "stage": stage,
            "since": time.time(),
        }
        if waiting_for is not None:
            status["waiting_for"] = str(waiting_for.relative_to(self._folder))
        place = self._folder / STATUSES / f"{self._part}.json" if self._part else self._folder / STATUS
        place.parent.mkdir(parents=True, exist_ok=True)
        _replace(place, msgspec.json.encode(status) + b"\n")


def of_samples(made: Artifact) -> dict[str, Any]:
    metrics = made.manifest.metrics
    finish = metrics["finish"]
    return {
        "length": metrics["mean_length"],
        "sampled_tokens": metrics["sampled_tokens"],
        "cut": finish.get("length", 0) / max(metrics["samples"], 1),
        "weights": metrics["weights"],
    }


def of_rewards(made: Artifact) -> dict[str, Any]:
    metrics = made.manifest.metrics
    mixed = metrics["groups"].get("mixed", 0) / max(metrics["prompts"], 1)
    passed = {f"pass_at_{k}": value for k, value in metrics["pass_at"].items()}
    return {"reward": metrics["reward_mean"], "mixed": mixed} | passed


def of_training(made: Artifact) -> dict[str, Any]:
    lines = [msgspec.json.decode(line) for line in made.file(METRICS).read_bytes().splitlines()]
    return {name: lines[-1][name] for name in _OF_TRAIN if name in lines[-1]}


def text_of(line: dict[str, Any]) -> str:
    shown = ("reward", "mixed", "nats", "length", "mismatch", "grad_norm")
    return ", ".join(f"{name} {line[name]:.4g}" for name in shown if line.get(name) is not None)


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
