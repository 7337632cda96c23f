"""SimPO: -log sigmoid(beta (m_c - m_r) - gamma), m the mean log-prob of an answer's tokens.

Sources: SimPO, <https://arxiv.org/abs/2405.14734>; AlphaPO, <https://arxiv.org/abs/2501.03884>.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.pairs import Answers, loss_of_pairs
from postmill.stages.train.objectives.simpo_options import Simpo


class SimpoLoss:
    """The loss of `options`."""

    def __init__(self, options: Simpo) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the answers."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The pairs of `batch`."""
        o, answers = self._options, Answers.of(outputs, batch)

        def reward(mean_P: Tensor) -> Tensor:
            return o.beta * (mean_P if o.alpha == 0 else (1 - torch.exp(-o.alpha * mean_P)) / o.alpha)

        rewards = reward(answers.chosen_mean_P), reward(answers.rejected_mean_P)
        x_P, e = rewards[0] - rewards[1] - o.gamma, o.label_smoothing
        pair_P = -logsigmoid(x_P) * (1 - e) - logsigmoid(-x_P) * e
        return loss_of_pairs(pair_P, answers, rewards, o.nll, norms)
