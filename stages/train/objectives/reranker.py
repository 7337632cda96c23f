"""Losses of rerankers, with v the score of a text for its query: a classifier's number, or z_yes - z_no of the language
model's head behind the text (Qwen3-Reranker, <https://arxiv.org/abs/2506.05176>).

    pointwise  mean over texts of the binary cross-entropy of v with whether the text fits
    listwise   mean over texts that fit of -log softmax of v / tau over the text itself and those that do not fit

They are sentence-transformers' BinaryCrossEntropyLoss, and its ListNetLoss and MultipleNegativesRankingLoss of
cross-encoders for one text that fits. Source: <https://arxiv.org/abs/1901.04085>.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.embedding import RIGHT, WRONG
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.reranker_options import Reranker


class RerankerLoss:
    """The loss of `options`."""

    def __init__(self, options: Reranker) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The scores, which such a head gives unasked."""
        return Ask()

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The groups of `batch`. Padding, whose place in a group is -1, is in none."""
        o = self._options
        assert outputs.values_NC is not None
        value_R = outputs.values_NC[:, 0]
        listed_P, top_P = _lists(value_R, batch)
        if o.loss == "listwise":
            logits = [torch.cat([own[None], wrong_W]) / o.temperature for own, wrong_W in listed_P]
            losses = [-row.log_softmax(0)[0] for row in logits]
            total = torch.stack([value_R.sum() * 0, *losses]).sum() / norms["positives"]
        else:
            fits_R = (batch.member_R == RIGHT).to(value_R.dtype)
            weight = value_R.new_tensor(o.positive_weight)
            loss_R = F.binary_cross_entropy_with_logits(value_R, fits_R, reduction="none", pos_weight=weight)
            total = torch.where(batch.member_R >= 0, loss_R, 0).sum() / norms["rows"]
        return Loss(total, {o.loss: total.detach()}, {"accuracy": (top_P.double().sum(), "positives")})


def _lists(value_R: Tensor, batch: Batch) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Of each text that fits: its score, those of its query's texts that do not; and whether it is above them."""
    lists = []
    for row in (batch.member_R == RIGHT).nonzero().flatten().tolist():
        wrong = (batch.group_R == batch.group_R[row]) & (batch.member_R == WRONG)
        lists.append((value_R[row], value_R[wrong]))
    top = [bool((own > wrong_W).all()) for own, wrong_W in lists]
    return lists, torch.tensor(top, dtype=torch.bool, device=value_R.device)
