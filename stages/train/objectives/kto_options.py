"""Options of learning from single answers that are marked good or bad: KTO and its kin."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.train.objectives.needs import Coupling, Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective

_COUPLING: dict[str, Coupling] = {"kto": "step_constants", "bco": "step_constants", "apo_zero_unpaired": "row"}


class Kto(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="kto"):
    """Learn from answers that are marked good or bad, without pairs, against a reference model (KTO)."""

    loss: Literal["kto", "bco", "apo_zero_unpaired"] = "kto"
    """kto: a value above or below the KL divergence, measured on prompts with other rows' answers (needs
    `--scores kl=DIR`); bco: a binary classifier around the mean reward (--kto.mean); apo_zero_unpaired: neither."""
    mean: Literal["run", "step"] = "run"
    """Rows whose reward bco averages: of all steps so far, as the paper, or of each step alone. Validation averages its
    own rows."""
    beta: Annotated[float, Meta(gt=0)] = 0.1
    """How strongly the model is held to the reference: higher is closer."""
    desirable: Annotated[float, Meta(ge=0)] = 1.0
    """Weight of good answers: those whose `label` is above 0.5."""
    undesirable: Annotated[float, Meta(ge=0)] = 1.0
    """Weight of bad answers. Weight times number should be about the same for good and bad ones, up to 4:3."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(
            stats=frozenset({"logp"}),
            columns=("ref_logp", "label"),
            partner_columns=("kl_logp",) if self.loss == "kto" else (),
            coupling=_COUPLING[self.loss],
            measures=("labelled",),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.kto import KtoLoss

        return KtoLoss(self)
