"""The first pass of a step whose loss looks at all its rows: summaries of rows, and what the second pass needs of them.

The pass has the noise of the second one (both are seeded by what a micro-batch holds) and sees rows in the order of
their ordinals, so neither micro-batches nor ranks change what comes out.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.stages.shared.asked import Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.blocks import Blocks
from postmill.stages.train.objectives.interface import ConstantsObjective, GradientsObjective, Loss, Past, StepRows
from postmill.stages.train.parallel.layout import Layout


@torch.no_grad()
def summaries(
    objective: ConstantsObjective | GradientsObjective, forward: Any, blocks: Blocks, layout: Layout
) -> tuple[Tensor, StepRows]:
    """The summary of every row of the step, of all ranks, in the order of row ordinals."""
    pieces = []
    for block in blocks.bins:
        batch = blocks.load(block, first_pass=True)
        with blocks.guarded(batch):
            summary_RS = objective.summary(forward(batch, blocks.ask(objective, batch, block)), batch)
        # a group is called by its first row: that is the same however the step was cut
        first_G = torch.full_like(batch.row_R, torch.iinfo(torch.int64).max)
        first_R = first_G.scatter_reduce(0, batch.group_R, batch.row_R, "amin")[batch.group_R]
        pieces.append((summary_RS.detach(), torch.stack([batch.row_R, first_R, batch.member_R], 1)))
    widest = max(summary.shape[1] for summary, _ in pieces)
    summary_RS = torch.cat([widen(summary, widest) for summary, _ in pieces])
    rows_R3 = torch.cat([rows for _, rows in pieces])
    widest = int(layout.gather(torch.tensor([widest], device=layout.device)).max())
    summary_RS, rows_R3 = layout.gather(widen(summary_RS, widest)), layout.gather(rows_R3, pad=-1)
    real_R = rows_R3[:, 0] >= 0
    summary_RS, rows_R3 = summary_RS[real_R], rows_R3[real_R]
    order_R = rows_R3[:, 0].argsort()
    row_R, first_R, member_R = rows_R3[order_R].t().contiguous()
    return summary_RS[order_R], StepRows(row_R, torch.unique(first_R, return_inverse=True)[1], member_R)


def widen(summary_RS: Tensor, width: int) -> Tensor:
    """The same with NaN up to `width` columns: summaries of one value a token are as wide as a batch's longest row."""
    return torch.nn.functional.pad(summary_RS, (0, width - summary_RS.shape[1]), value=float("nan"))


def step_constants(
    objective: ConstantsObjective, forward: Any, blocks: Blocks, layout: Layout, past: Past = ()
) -> dict[str, float]:
    summary_RS, _ = summaries(objective, forward, blocks, layout)
    return objective.constants(summary_RS, blocks.norms, past)


class Cached(NamedTuple):
    """The loss of a step from all its rows, and how it wants each row's summary to change."""

    objective: GradientsObjective
    loss: Loss
    row_R: Tensor
    gradient_RS: Tensor

    def share(self, outputs: Outputs, batch: Batch) -> Loss:
        """A value whose gradient is the step's, through the rows of `batch`."""
        summary_RS = self.objective.summary(outputs, batch)
        at_R = torch.searchsorted(self.row_R, batch.row_R).clamp(max=len(self.row_R) - 1)
        gradient_RS = torch.where((batch.row_R >= 0)[:, None], self.gradient_RS[at_R], 0)
        return Loss((summary_RS * gradient_RS.to(summary_RS.dtype)).sum(), {}, {})


def step_gradients(objective: GradientsObjective, forward: Any, blocks: Blocks, layout: Layout) -> Cached:
    summary_RS, rows = summaries(objective, forward, blocks, layout)
    with torch.enable_grad():
        leaf_RS = summary_RS.requires_grad_()
        loss = objective.step_loss(leaf_RS, rows, blocks.norms)
        [gradient_RS] = torch.autograd.grad(loss.total, [leaf_RS])
    return Cached(objective, loss, rows.row_R, gradient_RS)
