"""Options of reward models: a number for each answer, learned from pairs."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from postmill.stages.shared.heads import Head
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Rm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rm"):
    """Train a reward model: of each pair the chosen answer gets the higher number (Bradley-Terry)."""

    margin: bool = False
    """Ask for a difference of at least each pair's `margin` column."""
    centring: Annotated[float, Meta(ge=0)] = 0.0
    """Weight of the squared sum of a pair's two rewards, which keeps rewards near 0; 0.01 is usual (TRL's
    center_rewards_coefficient)."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(
            head=Head(kind="sequence"),
            columns=("margin",) if self.margin else (),
            group="pair",
            coupling="group",
            measures=("groups",),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.rm import RmLoss

        return RmLoss(self)
