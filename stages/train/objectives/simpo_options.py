"""Options of SimPO and AlphaPO: learning from pairs by mean log-probs."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from postmill.stages.train.objectives.needs import PAIRS_WITHOUT_REFERENCE, Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Simpo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="simpo"):
    """Learn to prefer one answer over another by their mean log-probs, without a reference model (SimPO)."""

    beta: Annotated[float, Meta(gt=0)] = 2.0
    """Reward of a nat per token."""
    gamma: Annotated[float, Meta(ge=0)] = 1.0
    """Difference of rewards to reach between the two answers."""
    alpha: float = 0.0
    """Shape of the reward (AlphaPO): (1 - p^-alpha) / alpha of the mean probability p; 0 is its logarithm."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """Share of pairs assumed to be the wrong way round."""
    nll: Annotated[float, Meta(ge=0)] = 0.0
    """Weight of the chosen answers' cross-entropy; TRL adds it with weight 1 (cpo_alpha), the paper does not."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return PAIRS_WITHOUT_REFERENCE

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.simpo import SimpoLoss

        return SimpoLoss(self)
