"""Classifiers and regressors of rows: cross-entropy, binary cross-entropies, or squared errors, a mean over rows.

Of several classes' binary terms and several numbers' errors the mean is taken within the row, as transformers does.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.seq_cls_options import SeqCls


class SeqClsLoss:
    """The loss of `options`."""

    def __init__(self, options: SeqCls) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The classifier's numbers, which a sequence head gives unasked."""
        return Ask()

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The rows of `batch`."""
        o, values_RC = self._options, outputs.values_NC
        assert values_RC is not None
        is_real_R = batch.row_R >= 0
        loss_R, measured_R = self._rows(values_RC, batch)
        total = torch.where(is_real_R, loss_R, 0).sum() / norms["rows"]
        name = "absolute_error" if o.problem == "regression" else "accuracy"
        measured = torch.where(is_real_R, measured_R.detach().double(), 0).sum()
        return Loss(total, {o.problem: total.detach()}, {name: (measured, "rows")})

    def _rows(self, values_RC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """[R] loss of each row, and what is measured of it: whether it is right, or by how much it is not."""
        o = self._options
        weight_C = values_RC.new_tensor(o.class_weights) if o.class_weights else None
        if o.problem == "single_label":
            target_R = batch.columns["label"].long()
            loss_R = F.cross_entropy(values_RC, target_R, reduction="none", label_smoothing=o.label_smoothing)
            factor_R = 1.0 if weight_C is None else weight_C[target_R]
            return loss_R * factor_R, values_RC.argmax(1) == target_R
        target_RC = batch.columns["label_list"].to(values_RC.dtype)
        if o.problem == "multi_label":
            loss_RC = F.binary_cross_entropy_with_logits(values_RC, target_RC, weight_C, reduction="none")
            return loss_RC.mean(1), ((values_RC > 0) == (target_RC > 0.5)).double().mean(1)
        if o.huber:
            loss_RC = F.huber_loss(values_RC, target_RC, reduction="none", delta=o.huber)
        else:
            loss_RC = F.mse_loss(values_RC, target_RC, reduction="none")
        return loss_RC.mean(1), (values_RC - target_RC).abs().mean(1)
