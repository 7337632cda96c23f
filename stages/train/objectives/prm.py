"""Process reward models: cross-entropy of the label of each step of an answer, read at the step's last token.

Sources: Let's Verify Step by Step, <https://arxiv.org/abs/2305.20050>; Math-Shepherd, <https://arxiv.org/abs/2312.08935>.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.interface import Loss
from postmill.stages.train.objectives.prm_options import Prm


class PrmLoss:
    """The loss of `options`."""

    def __init__(self, options: Prm) -> None:
        self.needs = options.needs

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """The classifier's numbers at the last token of each step."""
        return Ask(points_N=_points(batch))

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The steps of answers in `batch`; padding has none that count."""
        assert outputs.values_NC is not None
        at_N = _points(batch)
        label_N = batch.columns["step_label"][at_N - 1].long() - 1
        loss_N = F.cross_entropy(outputs.values_NC, label_N, reduction="none")
        is_real_N = (batch.row_R >= 0)[batch.row_T[at_N]]
        total = (loss_N * is_real_N).sum() / norms[self.needs.measures[0]]
        right_N = (outputs.values_NC.argmax(1) == label_N) & is_real_N
        return Loss(total, {"steps": total.detach()}, {"accuracy": (right_N.double().sum(), "points")})


def _points(batch: Batch) -> Tensor:
    """The tokens that are read. What is said of a token stands at the token before it."""
    found: Tensor = (batch.columns["step_label"] > 0).nonzero().squeeze(-1) + 1
    return found
