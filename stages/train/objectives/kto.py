"""Losses of single answers that are marked good or bad.

With a = s - ref the log-ratio of an answer, S the sigmoid, and z a number of the whole step:

    kto                w+ (1 - S(beta (a - z))) for good answers, w- (1 - S(beta (z - a))) for bad ones; z is the mean
                       log-ratio of mismatched rows, at least 0
    apo_zero_unpaired  the same with z = 0
    bco                -w+ log S(beta a - z), -w- log S(z - beta a); z is the mean of beta a over all labelled rows of
                       the run so far, or of the step alone

Each is a mean over the labelled rows of a step. Sources: KTO, equation 8, <https://arxiv.org/abs/2402.01306>; APO,
<https://arxiv.org/abs/2408.06266>; BCO, <https://arxiv.org/abs/2404.04656>.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss, Past
from postmill.stages.train.objectives.kto_options import Kto
from postmill.stages.train.objectives.pairs import row_sum


class KtoLoss:
    """The loss of `options`."""

    def __init__(self, options: Kto) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the answers."""
        return Ask(self.needs.stats)

    def summary(self, outputs: Outputs, batch: Batch) -> Tensor:
        """[R, 2]: log-ratio, and whether the row is labelled."""
        is_partner = "kl_logp" in batch.columns
        ratio_R = _log_ratio(outputs, batch, "kl_logp" if is_partner else "ref_logp")
        labelled_R = torch.ones_like(ratio_R) if is_partner else (~batch.columns["label"].isnan()).to(ratio_R.dtype)
        return torch.stack([ratio_R, labelled_R], dim=1)

    def constants(self, summary_RS: Tensor, norms: Mapping[str, float], past: Past = ()) -> dict[str, float]:
        """`z`: of the mismatched rows, or of the step's own and those before.

        The record holds z and the number of rows of each step, and nothing else is needed to go on with the mean.
        """
        ratio_R, labelled_R = summary_RS.double().unbind(1)
        mean = float((ratio_R * labelled_R).sum() / labelled_R.sum().clamp(min=1))
        if self._options.loss == "kto":
            return {"z": max(mean, 0.0)}
        z = self._options.beta * mean
        if past and self._options.mean == "run":
            before, now = sum(line["normaliser"] for line in past), float(labelled_R.sum())
            z = (before * past[-1]["z"] + now * z) / (before + now)
        return {"z": z}

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The labelled rows of `batch`."""
        o, z = self._options, constants.get("z", 0.0)
        ratio_R = _log_ratio(outputs, batch, "ref_logp")
        label_R = batch.columns["label"]
        is_real_R = ~label_R.isnan() & (batch.row_R >= 0)
        # +1 for good answers, -1 for bad ones
        sign_R = torch.where(label_R > 0.5, 1.0, -1.0).to(ratio_R.dtype)
        if o.loss == "bco":
            row_R = -logsigmoid(sign_R * (o.beta * ratio_R - z))
        else:
            row_R = 1 - torch.sigmoid(sign_R * o.beta * (ratio_R - z))
        weight_R = torch.full_like(row_R, o.undesirable).masked_fill(sign_R > 0, o.desirable)
        total = torch.where(is_real_R, weight_R * row_R, 0).sum() / norms["labelled"]
        shift = z if o.loss == "bco" else o.beta * z
        above_R = sign_R * (o.beta * ratio_R.detach() - shift)
        metrics = {
            "z": (is_real_R.double().sum() * z, "labelled"),
            "reward_gap": ((above_R * is_real_R).sum(), "labelled"),
            "reward_accuracy": (((above_R > 0) & is_real_R).double().sum(), "labelled"),
        }
        return Loss(total, {o.loss: total.detach()}, metrics)


def _log_ratio(outputs: Outputs, batch: Batch, reference: str) -> Tensor:
    """[R]: sum of weight * (log-prob - the reference's)."""
    assert outputs.logp_T is not None
    reference_T = torch.where(batch.mask_T, batch.columns[reference].to(outputs.logp_T.dtype), 0)
    return row_sum(batch.weights_T * (outputs.logp_T - reference_T), batch)
