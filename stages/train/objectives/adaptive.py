"""Cross-entropies that weigh each token by what the model thinks of it, with w_t the weight of the data.

    eaft   sum_t w_t * (H_t / ln 20)^alpha * -log p(y_t) / norm, the entropy H_t a constant for the gradient. The paper
           takes the entropy of the 20 likeliest tokens, hence ln 20; ours is of all, which is a little more
    focal  sum_t w_t * (1 - p(y_t))^gamma * -log p(y_t) / norm, the gradient through both factors

Sources: Entropy-Adaptive Fine-Tuning, <https://arxiv.org/abs/2601.02151>; Focal Loss, equation 4,
<https://arxiv.org/abs/1708.02002>.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.adaptive_options import Eaft, Focal
from postmill.stages.train.objectives.interface import Loss

_FULL_DOUBT = math.log(20)


class EaftLoss:
    """The loss of `options`."""

    def __init__(self, options: Eaft) -> None:
        self.needs, self._alpha = options.needs, options.alpha

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs and entropies of the trained tokens."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        assert outputs.entropy_T is not None
        doubt_T = (outputs.entropy_T.detach().clamp(min=0) / _FULL_DOUBT) ** self._alpha
        return weighted(doubt_T, outputs, batch, self.needs.measures[0], norms)


class FocalLoss:
    """The loss of `options`."""

    def __init__(self, options: Focal) -> None:
        self.needs, self._gamma = options.needs, options.gamma

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the trained tokens."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        assert outputs.logp_T is not None
        # a log-prob of 0 has no slope there: rounding must not make the gradient of 0^gamma infinite
        logp_T = outputs.logp_T.clamp(max=-1e-7)
        return weighted((-torch.expm1(logp_T)) ** self._gamma, outputs, batch, self.needs.measures[0], norms)


def weighted(factor_T: Tensor, outputs: Outputs, batch: Batch, measure: str, norms: Mapping[str, float]) -> Loss:
    """The cross-entropy of trained tokens, each times `factor_T` of it, over `measure`."""
    assert outputs.logp_T is not None
    nll_T = -batch.weights_T * outputs.logp_T
    total = torch.where(batch.mask_T, factor_T * nll_T, 0).sum() / norms[measure]
    return Loss(total, {"weighted_nll": total.detach()}, {"nll": (nll_T.detach().sum(dtype=torch.float64), measure)})
