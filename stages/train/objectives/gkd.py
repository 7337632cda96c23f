"""Divergences from a model's likeliest tokens, with T its distribution and S the trained one, a mean over tokens.

    forward       KL(T, S)                      skew_forward  KL(T, a T + (1 - a) S)
    reverse       KL(S, T)                      skew_reverse  KL(S, a S + (1 - a) T)
    js            b KL(T, M) + (1 - b) KL(S, M) with M = b T + (1 - b) S

Sources: GKD, equation 1, <https://arxiv.org/abs/2306.13649>; DistiLLM, <https://arxiv.org/abs/2402.03898>. ASFT is DFT
and a forward divergence from the reference, <https://arxiv.org/abs/2509.23753>.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

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
        ids_TK = batch.columns["teacher_top_ids"].long()
        return Ask(self.needs.stats, temperature=self._options.temperature, top_ids_TK=ids_TK)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        o = self._options
        teacher_TK = batch.columns["teacher_top_logp"]
        share = o.beta if o.divergence == "js" else o.alpha
        value_T = _at_scored(outputs, batch, teacher_TK, (o.tail, o.divergence, share))
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
        kl_T = _at_scored(outputs, batch, batch.columns["ref_top_logp"], (o.tail, "forward", 0.0))
        nll_T = -batch.weights_T * logp_T
        parts = {
            "dft": (logp_T.detach().exp() * nll_T).sum() / norms["tokens"],
            "kl": o.alpha * (batch.weights_T * kl_T).sum() / norms["tokens"],
        }
        total = torch.stack(list(parts.values())).sum()
        metrics = {"nll": (nll_T.detach().sum(), "tokens")}
        return Loss(total, {name: part.detach() for name, part in parts.items()}, metrics)


def _at_scored(outputs: Outputs, batch: Batch, given_TK: Tensor, how: tuple[Tail, Divergence, float]) -> Tensor:
    """[T]: the divergence at scored tokens, 0 elsewhere."""
    student_TK = outputs.top_logp_TK
    assert student_TK is not None
    at_N = batch.mask_T.nonzero().squeeze(-1)
    value_N = diverge(given_TK[at_N].to(student_TK.dtype), student_TK[at_N], *how)
    return student_TK.new_zeros(len(batch.mask_T)).index_copy(0, at_N, value_N)


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
