"""Weighted cross-entropy of the next token: supervised fine-tuning and continued pretraining."""

from collections.abc import Mapping

from postmill.stages.shared.asked import Ask, Linear, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.options import Sft


class SftLoss:
    """sum_t w_t * -log p(y_t) / norm. The weights are known beforehand, so the fused kernel does it all."""

    def __init__(self, options: Sft) -> None:
        self.needs, self._label_smoothing = options.needs, options.label_smoothing

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The fused loss."""
        return Ask(linear=Linear(batch.weights_T, norms[self.needs.measures[0]], self._label_smoothing))

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """What the kernel computed."""
        assert outputs.loss is not None
        return Loss(outputs.loss, {"nll": outputs.loss.detach()}, {})
