"""From logits to the next token of each row, with its log-probabilities. Letters: B rows, V vocabulary."""

from typing import NamedTuple

import torch
from torch import Tensor

from postmill.stages.shared.engine.philox import uniform
from postmill.stages.shared.engine.protocol import Sampling

_FIRST, _GROWTH = 256, 16
"""How many tokens are put in order at first, and how many times as many if that was not enough."""


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
    chosen = [_draw(logp_V, sampling, uniform(seed, position)) for logp_V, seed in zip(logp_BV, seeds, strict=True)]
    ids = [token for token, _ in chosen]
    logp = logp_BV.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    return Chosen(ids, logp, [sampled for _, sampled in chosen])


def _draw(logp_V: Tensor, sampling: Sampling, number: float) -> tuple[int, float]:
    """A token and its log-prob among those kept, from a `number` in [0, 1).

    Only as many of the likeliest tokens are put in order as the number reaches: mostly a few of a vocabulary.
    """
    vocabulary = len(logp_V)
    width = min(sampling.top_k or _FIRST, vocabulary)
    while True:
        logp_K, order_K = _likeliest(logp_V, width)
        share_K = logp_K.double().exp()
        is_whole = bool(sampling.top_k) or width == vocabulary
        mass = float(share_K.sum() if is_whole else logp_V.double().exp().sum())
        kept = _kept(share_K, sampling, mass)
        total = float(share_K[:kept].sum()) if is_whole or kept < width else mass
        at = int(torch.searchsorted(share_K[:kept].cumsum(0), number * total, right=True))
        # with kept == width the tokens behind may be cut off too, and then `total` is less
        is_known = is_whole or kept < width or (not sampling.is_truncated and at < kept)
        if is_known:
            at = min(at, kept - 1)
            return int(order_K[at]), float((share_K[at] / total).log())
        width = min(width * _GROWTH, vocabulary)


def _likeliest(logp_V: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens by falling probability, of equal ones the lower id first: log-probs and ids."""
    if width < len(logp_V):
        # all that are as likely as the last one kept, so that ties are settled by id
        floor = torch.topk(logp_V, width).values[-1]
        candidates = (logp_V >= floor).nonzero()[:, 0]
        order = logp_V[candidates].sort(descending=True, stable=True).indices[:width]
        return logp_V[candidates[order]], candidates[order]
    found = logp_V.sort(descending=True, stable=True)
    return found.values, found.indices


def _kept(share_K: Tensor, sampling: Sampling, mass: float) -> int:
    """How many of the likeliest tokens may be chosen. `mass` is of all that top_k leaves, as is usual for top_p."""
    kept = len(share_K)
    if sampling.top_p < 1:
        before_K = share_K.cumsum(0) - share_K
        kept = min(kept, int((before_K < sampling.top_p * mass).sum()))
    if sampling.min_p > 0:
        kept = min(kept, int((share_K >= sampling.min_p * share_K[0]).sum()))
    return max(kept, 1)
