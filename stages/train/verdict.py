"""What a run decides from its own record: which validation was the best, when to stop, when the loss runs away.

All of it is a function of the lines of `metrics.jsonl`, which checkpoints hold, so a resumed run decides alike.
"""

from collections.abc import Sequence
from typing import Any

from postmill.io.errors import DIVERGED, USAGE, ConfigError, StageError
from postmill.stages.train.config import Measure

_HIGHER = {"accuracy", "reward_accuracy", "reward_gap", "reward_chosen", "cosine", "teacher_mass"}
"""Metrics of which more is better; of all others, losses and errors, less is."""

Line = dict[str, Any]


def quality(line: Line, best: str) -> float | None:
    """How good a validation was by the metric `best`, higher is better; None for a line without one.

    Raises ConfigError (2) for a metric that the objective does not measure.
    """
    if "valid_loss" not in line:
        return None
    if f"valid_{best}" not in line:
        known = ", ".join(sorted(name.removeprefix("valid_") for name in line if name.startswith("valid_")))
        raise ConfigError(f"--best {best}: the objective does not measure it; there are {known}", USAGE)
    value = float(line[f"valid_{best}"])
    return value if best in _HIGHER else -value


def is_among_best(lines: Sequence[Line], best: str, keep: int) -> bool:
    """Whether the last line is a validation among the `keep` best so far."""
    if not keep or not lines:
        return False
    found = [q for line in lines if (q := quality(line, best)) is not None]
    last = quality(lines[-1], best)
    return last is not None and last in sorted(found, reverse=True)[:keep]


def is_over(lines: Sequence[Line], measure: Measure) -> bool:
    """Whether the last `patience` validations were no better than one before them."""
    found = [q for line in lines if (q := quality(line, measure.best)) is not None]
    if not measure.patience or len(found) <= measure.patience:
        return False
    return max(found[-measure.patience :]) <= max(found[: -measure.patience])


def watch(lines: Sequence[Line], measure: Measure, saved: int) -> None:
    """Raise StageError (79) if the loss of each of the last `watchdog_steps` steps was above the limit."""
    last = [line["loss"] for line in lines[-measure.watchdog_steps :]]
    if measure.watchdog is None or len(last) < measure.watchdog_steps or min(last) <= measure.watchdog:
        return
    back = f"the last checkpoint is of step {saved}" if saved else "there is no checkpoint yet"
    raise StageError(
        f"step {lines[-1]['step']}: the loss was above --watchdog {measure.watchdog:g} for {len(last)} steps, now"
        f" {last[-1]:g}; {back}. look at the data of these steps, or lower --lr",
        DIVERGED,
    )
