"""Reward models: -log sigmoid(r_c - r_r - margin) + centring * (r_c + r_r)^2, a mean over the pairs of a step.

Sources: Bradley-Terry as in InstructGPT, equation 1, <https://arxiv.org/abs/2203.02155>; margins as in equation 2 of
Llama 2, <https://arxiv.org/abs/2307.09288>; centring as in <https://arxiv.org/abs/2312.09244>.
"""

from collections.abc import Mapping

import torch
from torch.nn.functional import logsigmoid

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.pairs import Pairs
from postmill.stages.train.objectives.rm_options import Rm


class RmLoss:
    """The loss of `options`."""

    def __init__(self, options: Rm) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The classifier's numbers, which a sequence head gives unasked."""
        return Ask()

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The pairs of `batch`."""
        o, values_RC = self._options, outputs.values_NC
        assert values_RC is not None
        pairs = Pairs.of(batch.group_R, batch.member_R)
        chosen_P, rejected_P = pairs.split(values_RC[:, 0])
        gap_P = chosen_P - rejected_P
        if o.margin:
            gap_P = gap_P - pairs.split(batch.columns["margin"].to(gap_P.dtype).nan_to_num(0.0))[0]
        parts = {"preference": -logsigmoid(gap_P).sum() / norms["groups"]}
        if o.centring:
            parts["centring"] = o.centring * (chosen_P + rejected_P).square().sum() / norms["groups"]
        metrics = {
            "reward_chosen": (chosen_P.detach().sum(), "groups"),
            "reward_rejected": (rejected_P.detach().sum(), "groups"),
            "reward_accuracy": ((chosen_P > rejected_P).double().sum(), "groups"),
        }
        total = torch.stack(list(parts.values())).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()}, metrics)
