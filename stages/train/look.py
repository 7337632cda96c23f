"""A look at the data before the first step, for adapters whose first weights depend on it."""

from typing import Any

import torch
from torch import Tensor

from postmill.stages.shared.forward import Forward
from postmill.stages.train import model
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.config import Train
from postmill.stages.train.objectives.interface import Objective
from postmill.stages.train.plan import Data, Steps


class Look:
    """The bins of a run in their order, and what a model's loss is on one."""

    def __init__(self, cfg: Train, objective: Objective, data: Data, steps: Steps, device: torch.device) -> None:
        self._cfg, self._objective, self.steps, self._device = cfg, objective, steps, device
        self._source = BatchSource(data.reader, objective.needs, data.scores, data.rewards, data.pixels)

    def loss(self, net: Any, number: int) -> Tensor:
        """The loss of bin `number` of the run, by the normaliser of its step. Every rank looks at the same bins."""
        per_step = self._cfg.batch.bins_per_step
        step = self.steps[number // per_step]
        bins = step.bins.ravel()
        batch = self._source.load(bins[number % per_step :][:1]).to(self._device)
        dtype = model.compute_dtype(self._cfg, self._device)
        forward = Forward(
            model.causal_lm(net.to(self._device)),
            compute_dtype=dtype,
            backend=self._cfg.compute.loss_kernel,
            head=self._objective.needs.head,
        )
        outputs = forward(batch, self._objective.ask(batch, step.norms))
        return self._objective.loss(outputs, batch, step.norms, {}).total
