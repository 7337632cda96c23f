"""Options of pre-training."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.stats import Stat
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Pretrain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pretrain"):
    """Cross-entropy of the next token with what large runs add to it: a z-loss that keeps logits from drifting."""

    normalize: Literal["tokens", "weights", "rows"] = "tokens"
    """What a step's sum is divided by: trained tokens, the sum of weights, or rows."""
    z_loss: Annotated[float, Meta(ge=0)] = 0.0
    """Weight of the squared logarithm of the softmax's denominator (PaLM; 1e-4 is usual), at the cost of one more
    matrix product. At 0 this is `sft`."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        stats: frozenset[Stat] = frozenset({"logp", "lse"}) if self.z_loss else frozenset()
        return Needs(measures=(self.normalize,), stats=stats, linear=not self.z_loss)

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.pretrain import PretrainLoss

        return PretrainLoss(self)
