"""Do the layers of a model keep the rows of a bin apart? Most do, through our attention; layers with a state that runs
along the tokens (Mamba, gated delta rule, RWKV, xLSTM) or convolutions carry something of a row into the next.

Such models are computed row by row: their numbers are those of rows alone, and a bin is only a unit of work. Whether a
model is one is measured, not looked up: one row of made-up tokens is changed, and the row after it must not notice.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from postmill.io.packed import Bin
from postmill.stages.progress import Progress
from postmill.stages.shared.batch import Batch, collate

if TYPE_CHECKING:
    from postmill.stages.shared.forward import Forward

_LENGTH = 8
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest change of a hidden state, of the largest one. Rows that are apart change by 0, or by rounding where experts
are multiplied together; tiny random models with a state by 0.05 to 1. CPU, 2026-11-29."""


def settle(forward: "Forward", stage: str, device: torch.device) -> bool:
    """Let `forward` compute row by row, and say so once, if the model mixes the rows of a bin. Whether it does."""
    if keeps_apart(forward, device):
        return False
    forward.compute_each_row()
    family = forward.model.config.model_type
    Progress.warn(
        stage, f"layers of {family} models carry a state from row to row; the rows of a bin are computed one by one"
    )
    return True


@torch.no_grad()
def keeps_apart(forward: "Forward", device: torch.device) -> bool:
    """Whether a row of a bin stays the same when the row before it changes."""
    was_training = forward.training
    forward.eval()
    try:
        first_TH, second_TH = (forward.hidden(batch.to(device))[_LENGTH:].float() for batch in _two_bins(forward))
    except ValueError as error:
        # what transformers says where a layer has no kernel that is told where rows end
        if "packed sequences apart" not in str(error):
            raise
        return False
    finally:
        forward.train(was_training)
    difference = float((first_TH - second_TH).abs().max() / first_TH.abs().max())
    return difference <= _TOLERANCE[forward.compute_dtype]


def _two_bins(forward: "Forward") -> tuple[Batch, Batch]:
    """Bins of two rows, of which the first differs."""
    num_ids = forward.model.get_input_embeddings().weight.shape[0]
    steps = np.arange(_LENGTH, dtype=np.int32)
    first, other, second = ((factor * steps + start) % num_ids for factor, start in ((7, 3), (11, 5), (5, 4)))
    starts = np.array([0, _LENGTH, 2 * _LENGTH], np.int32)
    positions, weights = np.concatenate([steps, steps]), np.ones(2 * _LENGTH, np.float32)
    one, two = (
        collate([Bin(np.concatenate([row, second]), positions, starts, weights, np.zeros(2, np.int64))])
        for row in (first, other)
    )
    return one, two
