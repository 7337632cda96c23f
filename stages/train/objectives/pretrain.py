"""Pre-training: sum_t w_t * (-log p(y_t) + z_loss * lse_t^2) / norm, lse the log of the softmax's denominator.

Source: PaLM, section 5, <https://arxiv.org/abs/2204.02311>.
"""

from collections.abc import Mapping

import torch

from postmill.stages.shared.asked import Ask, Linear, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.pretrain_options import Pretrain


class PretrainLoss:
    """The loss of `options`. Without a z-loss the fused kernel does it all."""

    def __init__(self, options: Pretrain) -> None:
        self.needs, self._z_loss = options.needs, options.z_loss

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The fused loss, or the numbers that the z-loss is made of."""
        if self.needs.linear:
            return Ask(linear=Linear(batch.weights_T, norms[self.needs.measures[0]]))
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        if outputs.loss is not None:
            return Loss(outputs.loss, {"nll": outputs.loss.detach()}, {})
        assert outputs.logp_T is not None
        assert outputs.lse_T is not None
        norm = norms[self.needs.measures[0]]
        parts = {
            "nll": -(batch.weights_T * outputs.logp_T).sum() / norm,
            "z_loss": self._z_loss * (batch.weights_T * outputs.lse_T.square()).sum() / norm,
        }
        total = torch.stack(list(parts.values())).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()}, {})
