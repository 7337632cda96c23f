"""Log-probs of some entries of the vocabulary: the likeliest ones, or those that another model found likely.

Shape letters: N tokens, H hidden size, V vocabulary, K entries per token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from postmill.kernels.gather_logits import gather_logits

_BLOCK_BYTES = 64 << 20
"""For a block of logits of which only the highest are kept."""


class HeadOf(NamedTuple):
    """An lm head and the hidden states before it."""

    hidden_TH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    logit_scale: float
    softcap: float | None

    def scaled(self, logits: Tensor, temperature: float) -> Tensor:
        """What lies between the matrix product and the softmax."""
        logits = logits * self.logit_scale
        capped = logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
        return capped / temperature


@torch.no_grad()
def likeliest(head: HeadOf, num_top: int, temperature: float) -> tuple[Tensor, Tensor]:
    """[N, K] float32 log-probs of each token's likeliest successors, and their int64 ids; a block of logits at a time.

    Raises ValueError for more of them than the vocabulary has.
    """
    size = len(head.weight_VH)
    if num_top > size:
        raise ValueError(f"{num_top} likeliest tokens of a vocabulary of {size}")
    pieces = []
    step = max(1, _BLOCK_BYTES // (4 * size))
    for start in range(0, len(head.hidden_TH), step):
        block_BH = head.hidden_TH[start : start + step]
        logits_BV = torch.nn.functional.linear(block_BH, head.weight_VH, head.bias_V).float()
        logits_BV = head.scaled(logits_BV, temperature)
        top_BK, ids_BK = logits_BV.topk(num_top, dim=-1)
        pieces.append((top_BK - logits_BV.logsumexp(-1, keepdim=True), ids_BK))
    if not pieces:
        return head.hidden_TH.new_zeros(0, num_top), torch.zeros(0, num_top, dtype=torch.int64)
    return torch.cat([logp for logp, _ in pieces]), torch.cat([ids for _, ids in pieces])


def of_entries(head: HeadOf, ids_NK: Tensor, lse_N: Tensor, temperature: float) -> Tensor:
    """[N, K] float32 log-probs of `ids_NK`; differentiable. lse_N: log of the softmax's denominator."""
    logits_NK = gather_logits(head.hidden_TH, head.weight_VH, ids_NK, head.bias_V)
    return head.scaled(logits_NK, temperature) - lse_N[:, None]
