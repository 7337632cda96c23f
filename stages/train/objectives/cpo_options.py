"""Options of CPO: learning from pairs without a reference."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.train.objectives.needs import PAIRS_WITHOUT_REFERENCE, Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Cpo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cpo"):
    """Learn to prefer one answer over another without a reference model (CPO)."""

    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    """Loss of a pair. ipo compares log-probs per token, the others sums."""
    beta: Annotated[float, Meta(gt=0)] = 0.1
    """How sharply the two answers are told apart."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """Share of pairs assumed to be the wrong way round."""
    nll: Annotated[float, Meta(ge=0)] = 1.0
    """Weight of the chosen answers' cross-entropy (TRL's cpo_alpha)."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return PAIRS_WITHOUT_REFERENCE

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.cpo import CpoLoss

        return CpoLoss(self)
