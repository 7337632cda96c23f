"""Options of classifiers and regressors of whole rows."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.heads import Head
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective


class SeqCls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="seq_cls"):
    """Train a classifier or regressor of whole rows, from their `label`."""

    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    """single_label: `label` is one class, from 0; multi_label: it is a list of classes; regression: a number, or a list
    of them."""
    labels: Annotated[int, Meta(ge=1)] = 2
    """Number of classes, or of numbers to predict."""
    label_smoothing: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of each target's probability that is spread over the classes; for single_label."""
    class_weights: list[Annotated[float, Meta(gt=0)]] = []
    """Weight of each class, for rare ones: 1,5. It multiplies the loss of the class's rows (single_label) or of its own
    term (multi_label); what sums are divided by stays the number of rows."""
    huber: Annotated[float, Meta(ge=0)] = 0.0
    """For regression: the error from which on the loss grows linearly; 0 is the squared error throughout."""

    def __post_init__(self) -> None:
        if self.problem == "single_label" and self.labels < 2:
            raise ValueError("labels 1: one class leaves nothing to tell apart; for a number choose problem regression")
        if self.class_weights and len(self.class_weights) != self.labels:
            raise ValueError(f"class_weights: {len(self.class_weights)} weights for {self.labels} classes")
        if self.class_weights and self.problem == "regression":
            raise ValueError("class_weights are for classes; leave them out with problem regression")
        if self.label_smoothing and self.problem != "single_label":
            raise ValueError(f"label_smoothing is for problem single_label; leave it out with {self.problem}")
        if self.huber and self.problem != "regression":
            raise ValueError(f"huber is for problem regression; leave it out with {self.problem}")

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        return Needs(
            head=Head(kind="sequence", outputs=self.labels, problem=self.problem),
            columns=("label",) if self.problem == "single_label" else ("label_list",),
            measures=("rows",),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.seq_cls import SeqClsLoss

        return SeqClsLoss(self)
