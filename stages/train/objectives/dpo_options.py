"""Options of learning from pairs against a reference: DPO and the losses of its family."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.stats import Stat
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft"),
)
_SORTED = {"aot", "aot_unpaired"}
_NEEDS_DOUBT = {"exo_pair"}


class Dpo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dpo"):
    """Learn to prefer one answer over another, measured against a reference model (DPO and its family)."""

    loss: str = "sigmoid"
    """Loss of a pair, or several with weights, as in `sigmoid:0.8,bco_pair:0.2,sft:1`: sigmoid (DPO), hinge (SLiC),
    ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop,
    sigmoid_norm, sft (cross-entropy of the chosen answer, over its tokens)."""
    beta: Annotated[float, Meta(gt=0)] = 0.1
    """How strongly the model is held to the reference: higher is closer."""
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    """Share of pairs assumed to be the wrong way round; for sigmoid (then cDPO), robust, aot, and
    exo_pair, which needs more than 0."""
    f: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """Divergence from the reference: what a log-ratio is turned into. alpha: see --dpo.f-alpha."""
    f_alpha: float = 1.0
    """Coefficient of the alpha divergence; 1 is reverse_kl."""
    ld_alpha: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Weight of the tokens beyond the length of the shorter answer (LD-DPO). Default: all count the same."""
    weighting: bool = False
    """Weigh each pair by how likely the model is to write it (WPO), at the cost of one more matrix product."""
    margin: bool = False
    """Ask sigmoid for a reward difference of at least each pair's `margin` column."""
    discopop_tau: Annotated[float, Meta(gt=0)] = 0.05
    """Temperature at which discopop passes from one loss to the other."""

    def __post_init__(self) -> None:
        for name in self.terms:
            if name not in LOSSES:
                raise ValueError(f"loss {name}: no such loss; there are {', '.join(LOSSES)}")
        if self.label_smoothing == 0 and _NEEDS_DOUBT & self.terms.keys():
            raise ValueError("loss exo_pair needs label_smoothing above 0; 0.001 is usual")

    @property
    def terms(self) -> dict[str, float]:
        """Weight of each loss."""
        weights = {}
        for term in self.loss.split(","):
            name, _, weight = term.strip().partition(":")
            try:
                weights[name] = float(weight or 1)
            except ValueError:
                raise ValueError(f"loss {term}: {weight} is not a number; write NAME:WEIGHT") from None
        return weights

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        stats: frozenset[Stat] = frozenset({"logp", "collision"}) if self.weighting else frozenset({"logp"})
        return Needs(
            stats=stats,
            columns=("ref_logp", "margin") if self.margin else ("ref_logp",),
            group="pair",
            coupling="step_gradients" if _SORTED & self.terms.keys() else "group",
            measures=("groups", "chosen_tokens") if "sft" in self.terms else ("groups",),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.dpo import DpoLoss

        return DpoLoss(self)
