"""Options of cross-entropies that weigh each token by what the model thinks of it."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Eaft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="eaft"):
    """Cross-entropy of which a token counts as much as the model is in doubt: tokens that it is sure of and that
    contradict it do not overwrite what it knows (EAFT)."""

    alpha: Annotated[float, Meta(gt=0)] = 1.0
    """Power of the relative entropy that is a token's weight."""
    normalize: Literal["tokens", "weights", "rows"] = "tokens"
    """What a step's sum is divided by: trained tokens, the sum of weights, or rows."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(stats=frozenset({"logp", "entropy"}), measures=(self.normalize,))

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.adaptive import EaftLoss

        return EaftLoss(self)


class Focal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="focal"):
    """Cross-entropy of which a token counts less the surer the model is of it (focal loss)."""

    gamma: Annotated[float, Meta(ge=0)] = 2.0
    """Power of 1 - p; 0 is plain cross-entropy."""
    normalize: Literal["tokens", "weights", "rows"] = "tokens"
    """What a step's sum is divided by: trained tokens, the sum of weights, or rows."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(stats=frozenset({"logp"}), measures=(self.normalize,))

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.adaptive import FocalLoss

        return FocalLoss(self)
