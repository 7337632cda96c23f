"""Options of rerankers: how well a text fits a query, from reading both together."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.answer_tokens import answers_head
from postmill.stages.shared.heads import Head
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class Reranker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="reranker"):
    """Train a reranker (cross-encoder) on queries with texts that fit them and texts that do not."""

    loss: Literal["pointwise", "listwise"] = "pointwise"
    """pointwise: whether each text fits, by itself; listwise: each text that fits against all of its query that do
    not."""
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """Scores are divided by this; for listwise."""
    positive_weight: Annotated[float, Meta(gt=0)] = 1.0
    """Weight of texts that fit, which are the fewer; for pointwise."""
    answers: list[str] = []
    """Train a generative reranker, which stays a language model: two tokens, like yes,no. A text's score is the logit
    of the first behind it, less that of the second. Unset: a classifier of one number."""

    def __post_init__(self) -> None:
        if self.answers:
            answers_head(self.answers)

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        is_list = self.loss == "listwise"
        return Needs(
            head=answers_head(self.answers) if self.answers else Head(kind="sequence"),
            group="list",
            coupling="group" if is_list else "row",
            measures=("positives",) if is_list else ("rows", "positives"),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.reranker import RerankerLoss

        return RerankerLoss(self)
