"""Options of process reward models: whether each step of an answer is right."""

from typing import TYPE_CHECKING, Literal

import msgspec

from postmill.stages.shared.heads import Head
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Prm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="prm"):
    """Train a process reward model: a classifier that reads the last token of each step of an answer."""

    normalize: Literal["points", "rows"] = "points"
    """What a step's sum of cross-entropies is divided by: labelled steps of answers, or answers."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        measures = ("points",) if self.normalize == "points" else ("rows", "points")
        return Needs(head=Head(kind="token", outputs=2), columns=("step_label",), measures=measures)

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.prm import PrmLoss

        return PrmLoss(self)
