"""Critics: half the squared error of the value before each sampled token, clipped as PPO's policy is.

    0.5 * max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2), a mean over the sampled tokens of the step

The value before a token is read where the token is predicted. Source: <https://arxiv.org/abs/1707.06347> as in
<https://arxiv.org/abs/2005.12729>, section 3.
"""

from collections.abc import Mapping

import torch

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.rl import live_tokens
from postmill.stages.train.objectives.value_options import Value


class ValueLoss:
    """The loss of `options`."""

    def __init__(self, options: Value) -> None:
        self.needs, self._clip = options.needs, options.clip

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The critic's numbers where sampled tokens are predicted."""
        return Ask(points_N=live_tokens(batch))

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The live rows of `batch`."""
        assert outputs.values_NC is not None
        value_N, at_N = outputs.values_NC[:, 0], live_tokens(batch)
        return_N = batch.columns["returns"][at_N].to(value_N.dtype)
        loss_N = (value_N - return_N).square()
        old_N = batch.columns["values"][at_N].to(value_N.dtype)
        is_known_N = ~old_N.isnan()
        metrics = {
            "value": (value_N.detach().sum(), "sampled"),
            "error": (loss_N.detach().sum(), "sampled"),
        }
        if self._clip:
            near_N = torch.clamp(value_N, old_N - self._clip, old_N + self._clip)
            clipped_N = torch.where(is_known_N, (near_N - return_N).square(), loss_N)
            metrics["clipped"] = ((clipped_N > loss_N).double().sum(), "sampled")
            loss_N = torch.maximum(loss_N, clipped_N)
        total = 0.5 * loss_N.sum() / norms["sampled"]
        return Loss(total, {"value": total.detach()}, metrics)
