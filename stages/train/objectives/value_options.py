"""Options of critics: what is still to be earned, at each token."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from postmill.stages.shared.heads import Head
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="value"):
    """Train a critic: a number before each sampled token, which learns the returns of `reward --advantage gae`."""

    clip: Annotated[float, Meta(ge=0)] = 0.2
    """How far a value may move from what it was when the advantages were made before moving on stops to count; 0 lets
    it. Without a critic's values in the rewards nothing is clipped."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(
            head=Head(kind="token", outputs=1),
            columns=("advantage", "returns", "values"),
            sampled=True,
            measures=("sampled",),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.value import ValueLoss

        return ValueLoss(self)
