"""What the training loop knows of an objective: two functions, and three more where a term looks at the whole step.

All are pure: tensors and numbers in, tensors out. Masks, shares and normalisers come from the plan, so a loss never
depends on how rows were laid into micro-batches or dealt to ranks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.needs import Needs

Past = Sequence[Mapping[str, Any]]
"""Lines of `metrics.jsonl`."""


class Loss(NamedTuple):
    """What one micro-batch adds to the step."""

    total: Tensor
    """Scalar. Summed over micro-batches and ranks it is the step's loss."""
    parts: dict[str, Tensor]
    """Detached terms whose sum is `total`."""
    metrics: dict[str, tuple[Tensor, str]]
    """Name -> (sum over the batch, the measure it is a mean over). The same names for every batch of a step."""


class Objective(Protocol):
    """A loss of rows, or of groups that lie in one bin."""

    @property
    def needs(self) -> Needs:
        """The cheap half."""
        ...

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The numbers to compute of the model for `batch`."""
        ...

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The batch's part of the loss; `constants` are of the step, and empty without that coupling."""
        ...


class ConstantsObjective(Objective, Protocol):
    """A loss that needs numbers of the whole step first: coupling `step_constants`."""

    def summary(self, outputs: Outputs, batch: Batch) -> Tensor:
        """[R, S] float32: what `constants` has to know of each row. Called without gradients."""
        ...

    def constants(self, summary_RS: Tensor, norms: Mapping[str, float], past: "Past" = ()) -> dict[str, float]:
        """Numbers of the step from the summaries of all its rows, in the order of `Batch.row_R`.

        past: what the record has of the steps before, a line each; empty in validation.
        """
        ...


class GradientsObjective(Objective, Protocol):
    """A loss of all rows of a step at once: coupling `step_gradients`. `loss` is not called."""

    def summary(self, outputs: Outputs, batch: Batch) -> Tensor:
        """[R, S]: all that the loss has to know of each row. Differentiable."""
        ...

    def step_loss(self, summary_RS: Tensor, rows: "StepRows", norms: Mapping[str, float]) -> Loss:
        """The loss of the step from all its rows' summaries, in the order of `Batch.row_R`."""
        ...


class StepRows(NamedTuple):
    """The rows of a step, in the order of their ordinals."""

    row_R: Tensor
    """int64 ordinals in the tables."""
    group_R: Tensor
    """int64 group, 0 to G - 1."""
    member_R: Tensor
    """int64 place in the group."""
