"""The objectives there are, and what each needs; torch loads only when one is built."""

from typing import TYPE_CHECKING

from postmill.stages.train.config import Train
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


def needs_of(cfg: Train) -> Needs:
    """The cheap half of the run's objective."""
    return Needs(measures=(cfg.objective.normalize,), linear=True)


def build(cfg: Train) -> "Objective":
    """The run's objective."""
    from postmill.stages.train.objectives.sft import Sft

    return Sft(needs_of(cfg), label_smoothing=cfg.objective.label_smoothing)
