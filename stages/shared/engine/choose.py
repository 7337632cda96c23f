"""From logits to the next token of each row, with its log-probabilities. Letters: B rows, V vocabulary.

Each row is chosen by its own settings, seed and position, and nothing of it depends on the rows beside it.
"""

from collections import Counter

import torch
from torch import Tensor

from postmill.stages.shared.engine.live import Row
from postmill.stages.shared.engine.philox import uniform
from postmill.stages.shared.engine.protocol import Sampling, Token

_FIRST, _GROWTH = 256, 16
"""How many tokens are put in order at first, and how many times as many if that was not enough."""


def choose(logits_BV: Tensor, rows: list[Row]) -> list[Token]:
    """The next token of each row.

    The inverse of the distribution function is taken over the kept tokens by falling probability, of equal ones the
    lower id first, in float64; so the choice is a function of the row's logits, settings, seed and position alone.
    """
    logits_BV = logits_BV.float().cpu()
    raw_BV = logits_BV.log_softmax(-1)
    temperature_B = torch.tensor([row.sampling.temperature or 1.0 for row in rows])
    logp_BV = raw_BV if bool((temperature_B == 1).all()) else (logits_BV / temperature_B[:, None]).log_softmax(-1)
    return [
        _choose(row, logits_V, raw_V, logp_V)
        for row, logits_V, raw_V, logp_V in zip(rows, logits_BV, raw_BV, logp_BV, strict=True)
    ]


def likeliest(raw_V: Tensor, count: int) -> list[tuple[int, float]]:
    """The likeliest tokens and their log-probs, of equal ones the lower id first."""
    if not count:
        return []
    values, ids = _likeliest(raw_V, min(count, len(raw_V)))
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def _choose(row: Row, logits_V: Tensor, raw_V: Tensor, logp_V: Tensor) -> Token:
    sampling, position = row.sampling, len(row.answer) if row.position is None else row.position
    is_early = position < sampling.min_new_tokens and bool(sampling.stop_ids)
    if sampling.is_adjusted or is_early or row.guide is not None:
        logits_V = _adjusted(logits_V, row, barred=sampling.stop_ids if is_early else frozenset())
        drawn_V = (logits_V / (sampling.temperature or 1.0)).log_softmax(-1)
    else:
        drawn_V = logp_V
    if sampling.temperature == 0:
        token, sampled = int(logits_V.argmax()), 0.0
    else:
        token, sampled = _draw(drawn_V, sampling, uniform(row.seed, position))
    return Token(
        id=token,
        logp=float(logp_V[token]),
        sampled_logp=sampled,
        raw_logp=float(raw_V[token]),
        top=likeliest(raw_V, sampling.top_logprobs),
    )


def _adjusted(logits_V: Tensor, row: Row, *, barred: frozenset[int]) -> Tensor:
    """Logits after penalties and bias."""
    sampling, logits_V = row.sampling, logits_V.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.answer}))
        value = logits_V[seen]
        factor = sampling.repetition_penalty
        logits_V[seen] = torch.where(value > 0, value / factor, value * factor)
    if (sampling.presence_penalty or sampling.frequency_penalty) and row.answer:
        counts = Counter(row.answer)
        ids = torch.tensor(list(counts))
        taken = [sampling.presence_penalty + sampling.frequency_penalty * count for count in counts.values()]
        logits_V[ids] -= torch.tensor(taken)
    if sampling.bias:
        logits_V[torch.tensor(list(sampling.bias))] += torch.tensor(list(sampling.bias.values()))
    if row.guide is not None:
        allowed_V = row.guide.allowed_V[: len(logits_V)]
        logits_V[~allowed_V] = -torch.inf
        # where the grammar leaves nothing but to end, the answer ends before its least length
        barred = barred if int(allowed_V.sum()) > len([token for token in barred if allowed_V[token]]) else frozenset()
    if barred:
        logits_V[torch.tensor(sorted(barred))] = -torch.inf
    return logits_V


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
            # rounding must not reach tokens that cannot come
            at = min(at, kept - 1, int((share_K > 0).sum()) - 1)
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
    ranked = logp_V.sort(descending=True, stable=True)
    return ranked.values, ranked.indices


def _kept(share_K: Tensor, sampling: Sampling, mass: float) -> int:
    """How many of the likeliest tokens may be chosen. `mass` is of all that top_k leaves, as is usual for top_p."""
    kept = len(share_K)
    if sampling.top_p < 1:
        before_K = share_K.cumsum(0) - share_K
        kept = min(kept, int((before_K < sampling.top_p * mass).sum()))
    if sampling.min_p > 0:
        kept = min(kept, int((share_K >= sampling.min_p * share_K[0]).sum()))
    return max(kept, 1)
