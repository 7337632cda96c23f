"""Options of ORPO: cross-entropy and an odds ratio in one."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from postmill.stages.train.objectives.needs import PAIRS_WITHOUT_REFERENCE, Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Orpo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="orpo"):
    """Learn chosen answers, and prefer them by their odds ratio, without a reference model (ORPO)."""

    beta: Annotated[float, Meta(gt=0)] = 0.1
    """Weight of the odds ratio beside the cross-entropy of the chosen answers (lambda in the paper)."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return PAIRS_WITHOUT_REFERENCE

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.orpo import OrpoLoss

        return OrpoLoss(self)
