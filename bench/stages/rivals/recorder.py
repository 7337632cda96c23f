"""What both rivals' drivers share: the bins they are given, and a record of losses and times. Needs only NumPy."""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np


def read_bins(path: str) -> list[list[dict[str, Any]]]:
    """Bins in the order of training, each a list of rows: input_ids, labels (-100 where weight 0), weights."""
    with np.load(path) as file:
        ids, weights, lengths, num_rows = (file[name] for name in ("ids", "weights", "lengths", "num_rows"))
    labels = np.where(weights != 0, ids, -100)
    borders = np.cumsum(lengths)[:-1]
    pieces = zip(*(np.split(array, borders) for array in (ids, labels, weights)), strict=True)
    rows = [dict(zip(("input_ids", "labels", "weights"), (p.tolist() for p in piece), strict=True)) for piece in pieces]
    starts = np.concatenate([[0], np.cumsum(num_rows)])
    return [rows[a:b] for a, b in itertools.pairwise(starts)]


class Recorder:
    """Loss and end of each step of a transformers Trainer, to one JSON file."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ends: list[float] = []

    def watch(self, trainer: Any) -> None:
        """Note what `training_step` returns (the loss, where nothing is accumulated) and when each update is done."""
        from transformers import TrainerCallback

        recorder, step = self, trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = step(*args, **kwargs)
            recorder.losses.append(float(loss))
            return loss

        class Clock(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                recorder.ends.append(time.perf_counter())

        trainer.training_step = training_step
        trainer.add_callback(Clock())

    def write(self, path: str) -> None:
        """`losses`, and `seconds` between the ends of steps (one fewer)."""
        seconds = [b - a for a, b in itertools.pairwise(self.ends)]
        Path(path).write_text(json.dumps({"losses": self.losses, "seconds": seconds}))
