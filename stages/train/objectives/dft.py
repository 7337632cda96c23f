"""DFT: sum_t w_t * p(y_t) * -log p(y_t) / norm, with p(y_t) a constant.

Source: On the Generalization of SFT, <https://arxiv.org/abs/2508.05629>.
"""

from collections.abc import Mapping

import torch

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.dft_options import Dft
from postmill.stages.train.objectives.interface import Loss


class DftLoss:
    """The loss of `options`."""

    def __init__(self, options: Dft) -> None:
        self.needs = options.needs

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the trained tokens."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        assert outputs.logp_T is not None
        measure = self.needs.measures[0]
        nll_T = -batch.weights_T * outputs.logp_T
        # elsewhere the log-prob is 0 and so is the weight
        total = (outputs.logp_T.detach().exp() * nll_T).sum() / norms[measure]
        return Loss(total, {"dft": total.detach()}, {"nll": (nll_T.detach().sum(dtype=torch.float64), measure)})
