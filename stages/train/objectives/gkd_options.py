"""Options of distillation from a teacher's likeliest tokens."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective

Divergence = Literal["forward", "reverse", "js", "skew_forward", "skew_reverse"]
Tail = Literal["bucket", "renormalise", "none"]


class Gkd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gkd"):
    """Learn a teacher's distribution over its likeliest tokens, which `score --top-k` wrote down (distillation)."""

    divergence: Divergence = "forward"
    """forward: KL(teacher, student); reverse: KL(student, teacher); js: between both, see beta; skew_forward and
    skew_reverse: against a mixture with a share alpha of the other (DistiLLM)."""
    beta: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """For js: the teacher's share of the mixture and of the loss (TRL's beta)."""
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    """For the skewed ones: the share of what is measured in the mixture that it is compared with."""
    tail: Tail = "bucket"
    """What becomes of the other tokens. bucket: all of them count as one more; renormalise: both models are looked at
    as if there were only the teacher's likeliest; none: they are left out. reverse needs bucket to be right: what the
    student believes outside of them would cost nothing."""
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """What the student's logits are divided by; `score --temperature` does it to the teacher's."""
    nll: Annotated[float, Meta(ge=0)] = 0.0
    """Weight of plain cross-entropy beside it."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(
            stats=frozenset({"logp", "lse"}),
            columns=("teacher_top_ids", "teacher_top_logp", "teacher_logp"),
            measures=("tokens",),
            temperature=self.temperature,
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.gkd import GkdLoss

        return GkdLoss(self)


class Asft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="asft"):
    """DFT held to the model it starts from: a KL divergence from its likeliest tokens keeps what it knew (ASFT)."""

    alpha: Annotated[float, Meta(ge=0)] = 0.1
    """Weight of the divergence KL(reference, model)."""
    tail: Tail = "bucket"
    """What becomes of the tokens that are not among the reference's likeliest, as of `gkd`."""

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(stats=frozenset({"logp", "lse"}), columns=("ref_top_ids", "ref_top_logp"), measures=("tokens",))

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.gkd import AsftLoss

        return AsftLoss(self)
