"""CPO: -log sigmoid(beta (s_c - s_r)) + nll * cross-entropy of the chosen answer, s the log-prob of an answer.

Source: Contrastive Preference Optimization, <https://arxiv.org/abs/2401.08417>.
"""

from collections.abc import Mapping

import torch
from torch.nn.functional import logsigmoid

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.cpo_options import Cpo
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.pairs import Answers, loss_of_pairs


class CpoLoss:
    """The loss of `options`."""

    def __init__(self, options: Cpo) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the answers."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The pairs of `batch`."""
        o, answers = self._options, Answers.of(outputs, batch)
        delta_P = answers.chosen_P - answers.rejected_P
        if o.loss == "hinge":
            pair_P = torch.relu(1 - o.beta * delta_P)
        elif o.loss == "ipo":
            delta_P = answers.chosen_mean_P - answers.rejected_mean_P
            pair_P = (delta_P - 1 / (2 * o.beta)).square()
        else:
            x_P, e = o.beta * delta_P, o.label_smoothing
            pair_P = -logsigmoid(x_P) * (1 - e) - logsigmoid(-x_P) * e
        rewards = o.beta * answers.chosen_P, o.beta * answers.rejected_P
        return loss_of_pairs(pair_P, answers, rewards, o.nll, norms)
