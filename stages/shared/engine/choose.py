"""From logits to the next token of each row, with its log-probabilities. Letters: B rows, V vocabulary."""

from typing import NamedTuple

import torch
from torch import Tensor

from postmill.stages.shared.engine.philox import uniform
from postmill.stages.shared.engine.protocol import Sampling


class Chosen(NamedTuple):
    """A token for each row; see `Reply` for the two log-probabilities."""

    ids: list[int]
    logp: list[float]
    sampled_logp: list[float]


def choose(logits_BV: Tensor, sampling: Sampling, seeds: list[int], position: int) -> Chosen:
    """The next token of each row, token `position` of its answer.

    The inverse of the distribution function is taken over the kept tokens by falling probability, of equal ones the
    lower id first, in float64; so the choice is a function of the row's logits, its seed and the position alone.
    """
    logits_BV = logits_BV.float().cpu()
    temperature = sampling.temperature or 1.0
    logp_BV = (logits_BV / temperature).log_softmax(-1)
    if sampling.temperature == 0:
        ids_B = logits_BV.argmax(-1)
        return Chosen(ids_B.tolist(), logp_BV.gather(1, ids_B[:, None])[:, 0].tolist(), [0.0] * len(seeds))
    ids, sampled = [], []
    width = min(sampling.top_k or logp_BV.shape[1], logp_BV.shape[1])
    for row, seed in enumerate(seeds):
        logp_K, order_K = _likeliest(logp_BV[row], width, sampling)
        share_K = logp_K.double().exp()
        kept = _kept(share_K, sampling)
        total = float(share_K[:kept].sum())
        cumulative_K = share_K[:kept].cumsum(0)
        at = int(torch.searchsorted(cumulative_K, uniform(seed, position) * total, right=True))
        at = min(at, kept - 1)
        ids.append(int(order_K[at]))
        sampled.append(float((share_K[at] / total).log()))
    logp = logp_BV.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    return Chosen(ids, logp, sampled)


def _likeliest(logp_V: Tensor, width: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The likeliest tokens by falling probability, of equal ones the lower id first: log-probs and ids."""
    if width < len(logp_V):
        # all that are as likely as the last one kept, so that ties are settled by id
        floor = torch.topk(logp_V, width).values[-1]
        candidates = (logp_V >= floor).nonzero()[:, 0]
        order = logp_V[candidates].sort(descending=True, stable=True).indices[:width]
        return logp_V[candidates[order]], candidates[order]
    found = logp_V.sort(descending=True, stable=True)
    return found.values, found.indices


def _kept(share_K: Tensor, sampling: Sampling) -> int:
    """How many of the likeliest tokens may be chosen."""
    kept = len(share_K)
    if sampling.top_p < 1:
        before_K = share_K.cumsum(0) - share_K
        # shares are of what top_k left, as is usual
        kept = min(kept, int((before_K < sampling.top_p * share_K.sum()).sum()))
    if sampling.min_p > 0:
        kept = min(kept, int((share_K >= sampling.min_p * share_K[0]).sum()))
    return max(kept, 1)
