"""The gradient of one step, and the loss of a validation set: sums over bins, divided by what the plan says.

How far one term of the loss looks decides the passes of a step:

    row, group       one pass: each micro-batch forward, loss, backward
    step_constants   a pass without gradients first, for numbers of the whole step; then as above
    step_gradients   a pass without gradients for a summary of each row; the loss of all summaries, and its gradient
                     with respect to them; then each micro-batch again, to carry that gradient on (gradient cache,
                     <https://arxiv.org/abs/2101.06983>)
"""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from postmill.stages.shared.batch import Batch
from postmill.stages.shared.stats import Stat
from postmill.stages.train.blocks import Blocks
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.config import Train
from postmill.stages.train.coupling import Cached, step_constants, step_gradients, summaries
from postmill.stages.train.objectives.interface import ConstantsObjective, GradientsObjective, Loss, Objective, Past
from postmill.stages.train.parallel.layout import Layout
from postmill.stages.train.plan import Step, total_norms
from postmill.stages.train.row_losses import SpanSums
from postmill.stages.train.survey import Channels

_LOGP: frozenset[Stat] = frozenset({"logp"})


class Gradient(NamedTuple):
    """What `accumulate` measured; the gradient itself is in the parameters."""

    loss: Tensor
    """float64 scalar: the step's loss, over all ranks."""
    micro_losses: list[Tensor]
    """This rank's share of it, by micro-batch."""
    metrics: dict[str, Tensor]
    """What else the objective measured, float64 scalars over all ranks: terms of the loss where it has several, and
    means over their measures."""
    channels: Tensor | None
    """float64 [2, number of channels]: sum of weight * nll, and number of trained tokens."""
    data_seconds: float
    """What was spent waiting for bins."""
    spans: Tensor | None = None
    """What each span of each row lost, see `SpanSums.whole`."""


def accumulate(
    cfg: Train,
    forward: Any,
    objective: Objective,
    source: BatchSource,
    step: Step,
    *,
    layout: Layout,
    channels: Channels | None = None,
    row_losses: bool = False,
    past: Past = (),
    upcoming: Step | None = None,
) -> Gradient:
    """Add the gradient of `step` to the parameters of `forward`: a `Forward`, which may be wrapped for several ranks.

    upcoming: the step after it, whose pictures are made meanwhile.
    Raises StageError (1) when memory runs out.
    """
    blocks = Blocks(cfg, source, step, layout, upcoming)
    constants, cached = _look_first(objective, forward, blocks, layout, past)
    losses: list[Tensor] = []
    held: dict[int, tuple[Tensor | None, contextlib.ExitStack]] = {}
    tally = Tally()
    by_channel = ChannelSums(channels) if channels else None
    by_span = SpanSums() if row_losses else None
    watchers = [watcher for watcher in (by_channel, by_span) if watcher is not None]
    for number, is_forward in layout.order(len(blocks.bins)):
        if not is_forward:
            share, inside = held.pop(number)
            with inside:
                layout.backward(share)
            continue
        block = blocks.bins[number]
        batch = blocks.load(block)
        with contextlib.ExitStack() as stack:
            stack.enter_context(blocks.guarded(batch))
            stack.enter_context(layout.gathering(forward, last=number + 1 == len(blocks.bins)))
            ask = blocks.ask(objective, batch, block)
            outputs = forward(batch, ask._replace(stats=ask.stats | _LOGP) if watchers else ask)
            if not layout.has_outputs:
                held[number] = None, stack.pop_all()
                continue
            if cached is None:
                loss = objective.loss(outputs, batch, step.norms, constants)
            else:
                loss = cached.share(outputs, batch)
            total = loss.total if outputs.router is None else loss.total + outputs.router
            held[number] = total, stack.pop_all()
        losses.append(total.detach())
        tally.add(loss)
        if watchers and block[0] >= 0:
            assert outputs.logp_T is not None
            for watcher in watchers:
                watcher.add(outputs.logp_T.detach(), batch)

    def measured() -> Gradient:
        if cached is None:
            total = layout.sum(torch.stack(losses).double().sum())
            metrics = tally.means(step.norms, layout)
        else:  # all ranks have the whole of it
            tally.add(cached.loss)
            total, metrics = cached.loss.total.detach().double(), tally.means(step.norms, None)
        whole = None if by_channel is None else layout.sum(by_channel.sums)
        spans = None if by_span is None else by_span.whole(layout)
        return Gradient(total, losses, metrics, whole, blocks.data_seconds, spans)

    return layout.agreed(measured)


def _look_first(
    objective: Objective, forward: Any, blocks: Blocks, layout: Layout, past: Past
) -> tuple[Mapping[str, float], Cached | None]:
    """What a loss needs of the whole step before its first gradient: constants, or the gradient of each summary."""
    if objective.needs.coupling == "step_constants":
        return step_constants(cast("ConstantsObjective", objective), forward, blocks, layout, past), None
    if objective.needs.coupling == "step_gradients":
        return {}, step_gradients(cast("GradientsObjective", objective), forward, blocks, layout)
    return {}, None


class ChannelSums:
    """Loss and trained tokens of each channel, over micro-batches."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self.sums = torch.zeros(2, len(channels.names), dtype=torch.float64)
        """float64 [2, number of channels]: sum of weight * nll, and number of trained tokens."""

    def add(self, logp_T: Tensor, batch: Batch) -> None:
        """One micro-batch more; logp_T: of its tokens."""
        channel_of_row = self._channels.of_row[batch.row_R.cpu().numpy()]
        lengths = torch.tensor(batch.row_starts).diff()
        channel_T = torch.repeat_interleave(torch.from_numpy(channel_of_row), lengths)
        weights_T = batch.weights_T.cpu().double()
        values_2T = torch.stack([-weights_T * logp_T.cpu().double(), (weights_T != 0).double()])
        self.sums += torch.zeros_like(self.sums).index_add_(1, channel_T, values_2T)


class Tally:
    """Sums of what a loss reports, over micro-batches."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}
        self._metrics: dict[str, tuple[Tensor, str]] = {}

    def add(self, loss: Loss) -> None:
        """One micro-batch more."""
        for name, part in loss.parts.items():
            self._parts[name] = part.double() + self._parts.get(name, 0.0)
        for name, (value, measure) in loss.metrics.items():
            so_far = self._metrics[name][0] if name in self._metrics else 0.0
            self._metrics[name] = (value.detach().double() + so_far, measure)

    def means(self, norms: Mapping[str, float], layout: Layout | None) -> dict[str, Tensor]:
        """Terms of the loss, if there are several, and each metric over its measure; over all ranks."""
        found = dict(self._parts) if len(self._parts) > 1 else {}
        found |= {name: value / norms[measure] for name, (value, measure) in self._metrics.items()}
        if not found or layout is None:
            return found
        return dict(zip(found, layout.sum(torch.stack(list(found.values()))).unbind(), strict=True))


def validate(
    cfg: Train,
    forward: Any,
    objective: Objective,
    source: BatchSource,
    layout: Layout,
) -> dict[str, float]:
    """`loss` and the objective's metrics over all bins of `source`, without noise, dropout or smoothing. The whole set
    is one step."""
    forward.eval()
    norms = total_norms(source.data, objective.needs.measures)
    ranks = layout.num_data
    # every rank runs as many batches, since shards of a model are gathered by all together
    bins = np.pad(np.arange(len(source.reader)), (0, -len(source.reader) % ranks), constant_values=-1)
    step = Step(0, 0, bins.reshape(-1, ranks).T, norms, 1, 1)
    blocks = Blocks(cfg, source, step, layout)
    total = torch.zeros((), dtype=torch.float64, device=layout.device)
    tally = Tally()
    with torch.no_grad():
        constants: Mapping[str, float] = {}
        if objective.needs.coupling == "step_gradients":
            seen = summaries(cast("GradientsObjective", objective), forward, blocks, layout)
            whole = cast("GradientsObjective", objective).step_loss(*seen, norms)
            tally.add(whole)
            total += whole.total.double() / ranks
            blocks.bins = []
        elif objective.needs.coupling == "step_constants":
            constants = step_constants(cast("ConstantsObjective", objective), forward, blocks, layout)
        for block in blocks.bins:
            batch = blocks.load(block)
            outputs = forward(batch, blocks.ask(objective, batch, block))
            if not layout.has_outputs:
                continue
            terms = objective.loss(outputs, batch, norms, constants)
            tally.add(terms)
            total += terms.total.double()
    forward.train()

    # all ranks have the whole of what looks at all rows
    def measured() -> dict[str, float]:
        means = tally.means(norms, layout if objective.needs.coupling != "step_gradients" else None)
        return {"loss": float(layout.sum(total))} | {name: float(value) for name, value in means.items()}

    return layout.agreed(measured)
