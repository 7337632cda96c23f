"""ORPO: cross-entropy of the chosen answer - beta log sigmoid(log odds ratio), odds p / (1 - p) of mean probabilities.

The cross-entropy is over the chosen answers' trained tokens (TRL's covers the prompt as well).
Source: ORPO, equations 4 to 7, <https://arxiv.org/abs/2403.07691>.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.orpo_options import Orpo
from postmill.stages.train.objectives.pairs import Answers, loss_of_pairs


class OrpoLoss:
    """The loss of `options`."""

    def __init__(self, options: Orpo) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the answers."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The pairs of `batch`."""
        o, answers = self._options, Answers.of(outputs, batch)
        chosen_P, rejected_P = answers.chosen_mean_P, answers.rejected_mean_P
        log_odds_P = (chosen_P - rejected_P) - (_log1mexp(chosen_P) - _log1mexp(rejected_P))
        pair_P = -o.beta * logsigmoid(log_odds_P)
        return loss_of_pairs(pair_P, answers, (o.beta * chosen_P, o.beta * rejected_P), 1.0, norms)


def _log1mexp(x_P: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, by whichever form loses no digits."""
    is_small_P = x_P > -0.6931
    # each form sees only what it is for: the gradient of the one not taken must be finite
    small_P = torch.where(is_small_P, x_P, -1.0)
    large_P = torch.where(is_small_P, -1.0, x_P)
    return torch.where(is_small_P, (-torch.expm1(small_P)).log(), torch.log1p(-large_P.exp()))
