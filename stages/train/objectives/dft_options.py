"""Options of dynamic fine-tuning."""

from typing import TYPE_CHECKING, Literal

import msgspec

from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Dft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dft"):
    """Cross-entropy of which each token counts as much as the model already believes in it (DFT)."""

    normalize: Literal["tokens", "weights", "rows"] = "tokens"
    """What a step's sum is divided by: trained tokens, the sum of weights, or rows."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(stats=frozenset({"logp"}), measures=(self.normalize,))

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.dft import DftLoss

        return DftLoss(self)
