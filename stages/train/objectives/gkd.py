"""Divergences from a model's likeliest tokens, with T its distribution and S the trained one, a mean over tokens.

    forward       KL(T, S)                      skew_forward  KL(T, a T + (1 - a) S)
    reverse       KL(S, T)                      skew_reverse  KL(S, a S + (1 - a) T)
    js            b KL(T, M) + (1 - b) KL(S, M) with M = b T + (1 - b) S

Scores of a teacher with another tokenizer (`score --onto`) have a log-prob for each piece of text where both have a
border. A piece that is one token of both vocabularies is compared as above; the likeliest tokens that the student does
not have are among the others. Of any other piece two outcomes are compared, that text and anything else. The log-prob
of a text is the sum over its tokens. A piece counts once, with the weight of its last token.

Sources: GKD, equation 1, <https://arxiv.org/abs/2306.13649>; DistiLLM, <https://arxiv.org/abs/2402.03898>. ASFT is DFT
and a forward divergence from the reference, <https://arxiv.org/abs/2509.23753>.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from postmill.io.scores import ABSENT
from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.gkd_options import Asft, Divergence, Gkd, Tail
from postmill.stages.train.objectives.interface import Loss

_LARGEST_SUM = -1e-7
"""Highest log of a sum of probabilities: beyond, rounding leaves nothing for the others."""


class GkdLoss:
    """The loss of `options`."""

    def __init__(self, options: Gkd) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the teacher's likeliest tokens."""
        ids_TK = batch.columns["teacher_top_ids"].long().clamp(min=0)
        return Ask(self.needs.stats, temperature=self._options.temperature, top_ids_TK=ids_TK)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        o = self._options
        teacher_TK = batch.columns["teacher_top_logp"]
        share = o.beta if o.divergence == "js" else o.alpha
        value_T = _at_scored(outputs, batch, "teacher", (o.tail, o.divergence, share))
        value_T = value_T + _of_texts(outputs, batch, (o.divergence, share))
        assert outputs.logp_T is not None
        parts = {"divergence": (batch.weights_T * value_T).sum() / norms["tokens"]}
        nll_T = -batch.weights_T * outputs.logp_T
        if o.nll:
            parts["nll"] = o.nll * nll_T.sum() / norms["tokens"]
        total = torch.stack(list(parts.values())).sum()
        seen_T = torch.where(batch.mask_T[:, None], teacher_TK.exp(), 0).sum()
        metrics = {} if o.nll else {"nll": (nll_T.detach().sum(), "tokens")}
        metrics["teacher_mass"] = (seen_T.double(), "tokens")
        return Loss(total, {name: part.detach() for name, part in parts.items()}, metrics)


class AsftLoss:
    """The loss of `options`."""

    def __init__(self, options: Asft) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the targets and of the reference's likeliest tokens."""
        return Ask(self.needs.stats, top_ids_TK=batch.columns["ref_top_ids"].long())

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        o, logp_T = self._options, outputs.logp_T
        assert logp_T is not None
        kl_T = _at_scored(outputs, batch, "ref", (o.tail, "forward", 0.0))
        nll_T = -batch.weights_T * logp_T
        parts = {
            "dft": (logp_T.detach().exp() * nll_T).sum() / norms["tokens"],
            "kl": o.alpha * (batch.weights_T * kl_T).sum() / norms["tokens"],
        }
        total = torch.stack(list(parts.values())).sum()
        metrics = {"nll": (nll_T.detach().sum(), "tokens")}
        return Loss(total, {name: part.detach() for name, part in parts.items()}, metrics)


def _at_scored(outputs: Outputs, batch: Batch, role: str, how: tuple[Tail, Divergence, float]) -> Tensor:
    """[T]: the divergence from the likeliest tokens of `role` at scored tokens, 0 elsewhere."""
    given_TK, student_TK = batch.columns[f"{role}_top_logp"], outputs.top_logp_TK
    assert student_TK is not None
    at_N = batch.mask_T.nonzero().squeeze(-1)
    student_NK = student_TK[at_N].masked_fill(batch.columns[f"{role}_top_ids"][at_N] < 0, ABSENT)
    value_N = diverge(given_TK[at_N].to(student_TK.dtype), student_NK, *how)
    return student_TK.new_zeros(len(batch.mask_T)).index_copy(0, at_N, value_N)


def _of_texts(outputs: Outputs, batch: Batch, how: tuple[Divergence, float]) -> Tensor:
    """[T]: at the last token of a piece of text that is not one token of both vocabularies, the divergence between the
    teacher's and the student's belief in it; 0 elsewhere. A piece with a token that is not scored is left out."""
    given_T, logp_T = batch.columns["teacher_logp"], outputs.logp_T
    assert logp_T is not None
    ends_T = ~given_T.isnan()
    piece_T = ends_T.cumsum(0) - ends_T.long()
    sum_P = logp_T.new_zeros(len(piece_T) + 1).index_add(0, piece_T, logp_T)
    unscored_P = logp_T.new_zeros(len(sum_P)).index_add(0, piece_T, (~batch.mask_T).to(logp_T.dtype))
    is_text_T = ends_T & (given_T <= 0) & (unscored_P[piece_T] == 0)
    at_N = (is_text_T & (batch.columns["teacher_top_ids"] < 0).all(-1)).nonzero().squeeze(-1)
    teacher_N1 = given_T[at_N].to(logp_T.dtype)[:, None]
    value_N = diverge(teacher_N1, sum_P[piece_T[at_N]][:, None], "bucket", *how)
    return torch.zeros_like(logp_T).index_copy(0, at_N, value_N)


def diverge(t_NK: Tensor, s_NK: Tensor, tail: Tail, divergence: Divergence, share: float) -> Tensor:
    """[N]: how far S is from T, from log-probs of T's likeliest tokens. share: `beta` of js, `alpha` of the skewed."""
    t_NK, s_NK = _completed(t_NK, tail), _completed(s_NK, tail)
    if divergence == "forward":
        return _kl(t_NK, s_NK)
    if divergence == "reverse":
        return _kl(s_NK, t_NK)
    if divergence == "skew_forward":
        return _kl(t_NK, _mixture(t_NK, s_NK, share))
    if divergence == "skew_reverse":
        return _kl(s_NK, _mixture(s_NK, t_NK, share))
    middle_NK = _mixture(t_NK, s_NK, share)
    return share * _kl(t_NK, middle_NK) + (1 - share) * _kl(s_NK, middle_NK)


def _completed(logp_NK: Tensor, tail: Tail) -> Tensor:
    if tail == "none":
        return logp_NK
    sum_N1 = logp_NK.logsumexp(-1, keepdim=True)
    if tail == "renormalise":
        return logp_NK - sum_N1
    return torch.cat([logp_NK, torch.log(-torch.expm1(sum_N1.clamp(max=_LARGEST_SUM)))], dim=-1)


def _kl(p_NK: Tensor, q_NK: Tensor) -> Tensor:
    return (p_NK.exp() * (p_NK - q_NK)).sum(-1)


def _mixture(p_NK: Tensor, q_NK: Tensor, share: float) -> Tensor:
    """log(share * p + (1 - share) * q)."""
    return torch.logaddexp(p_NK + math.log(share), q_NK + math.log1p(-share))
