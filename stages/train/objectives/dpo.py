"""Losses of pairs against a reference.

With s the sum of weight * log-prob of an answer's tokens, L their number, c the chosen and r the rejected answer:
a = s_c - ref_c and b = s_r - ref_r are log-ratios, f(a) and f(b) what the divergence makes of them, d = f(a) - f(b),
S = log sigmoid. Each loss is a mean over the pairs of a step, but `sft`, which is one over the chosen answers' tokens.

Sources: DPO <https://arxiv.org/abs/2305.18290>, f-DPO <https://arxiv.org/abs/2309.16240>, and those named below. IPO
is normalised by length, as its authors agreed with TRL.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train.objectives.dpo_options import Dpo
from postmill.stages.train.objectives.interface import Loss, StepRows
from postmill.stages.train.objectives.pairs import Pairs, row_length, row_sum, tail_factors

_LARGEST_EXPONENT = 80.0


class Sides(NamedTuple):
    """What the losses know of P pairs: of the chosen answers, then of the rejected ones."""

    a_P: Tensor
    """Log-ratio of the chosen answer, s_c - ref_c."""
    b_P: Tensor
    logp_c_P: Tensor
    logp_r_P: Tensor
    length_c_P: Tensor
    length_r_P: Tensor
    margin_P: Tensor
    """Least difference of rewards that sigmoid asks for."""


def _smoothed(o: Dpo, x_P: Tensor) -> Tensor:
    return -logsigmoid(x_P) * (1 - o.label_smoothing) - logsigmoid(-x_P) * o.label_smoothing


def _sigmoid(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """With a share of flipped labels: cDPO. With margins: <https://arxiv.org/abs/2402.10571>."""
    return _smoothed(o, o.beta * (f(p.a_P) - f(p.b_P)) - p.margin_P)


def _hinge(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """SLiC-HF, <https://arxiv.org/abs/2305.10425>."""
    return torch.relu(1 - o.beta * (f(p.a_P) - f(p.b_P)))


def _per_token(p: Sides, f: "Link") -> Tensor:
    return f(p.a_P) / p.length_c_P - f(p.b_P) / p.length_r_P


def _ipo(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """Equation 17 of <https://arxiv.org/abs/2310.12036>, per token."""
    return (_per_token(p, f) - 1 / (2 * o.beta)).square()


def _exo_pair(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """Equation 16 of <https://arxiv.org/abs/2402.00856>: KL from [1 - e, e] to the model's preference."""
    x = o.beta * (f(p.a_P) - f(p.b_P))
    win = x.sigmoid() * (logsigmoid(x) - math.log1p(-o.label_smoothing))
    return win + (-x).sigmoid() * (logsigmoid(-x) - math.log(o.label_smoothing))


def _nca_pair(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """<https://arxiv.org/abs/2402.05369>."""
    a, b = o.beta * p.a_P, o.beta * p.b_P
    return -logsigmoid(a) - logsigmoid(-a) / 2 - logsigmoid(-b) / 2


def _robust(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """<https://arxiv.org/abs/2403.00409>: unbiased where a share e of the labels is flipped."""
    x, e = o.beta * (f(p.a_P) - f(p.b_P)), o.label_smoothing
    return (-(1 - e) * logsigmoid(x) + e * logsigmoid(-x)) / (1 - 2 * e)


def _bco_pair(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """<https://arxiv.org/abs/2404.04656>, without its running shift."""
    return -logsigmoid(o.beta * p.a_P) - logsigmoid(-o.beta * p.b_P)


def _sppo_hard(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """Equation 4.7 of <https://arxiv.org/abs/2405.00675> with probabilities 1 and 0."""
    return (p.a_P - 0.5 / o.beta).square() + (p.b_P + 0.5 / o.beta).square()


def _aot(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """<https://arxiv.org/abs/2406.05882>: all of the step's answers, sorted."""
    reference_P = (p.logp_c_P - p.a_P) - (p.logp_r_P - p.b_P)
    return _smoothed(o, o.beta * ((p.logp_c_P - p.logp_r_P).sort()[0] - reference_P.sort()[0]))


def _aot_unpaired(o: Dpo, p: Sides, f: "Link") -> Tensor:
    return _smoothed(o, o.beta * (p.a_P.sort()[0] - p.b_P.sort()[0]))


def _apo_zero(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """Equation 7 of <https://arxiv.org/abs/2408.06266>."""
    return 1 - (o.beta * p.a_P).sigmoid() + (o.beta * p.b_P).sigmoid()


def _apo_down(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """Equation 8 of <https://arxiv.org/abs/2408.06266>."""
    return (o.beta * p.a_P).sigmoid() + 1 - (o.beta * (p.a_P - p.b_P)).sigmoid()


def _discopop(o: Dpo, p: Sides, f: "Link") -> Tensor:
    """Equation 5 of <https://arxiv.org/abs/2406.08414>."""
    x = o.beta * (f(p.a_P) - f(p.b_P))
    mix = (x / o.discopop_tau).sigmoid()
    return -logsigmoid(x) * (1 - mix) + (-x).exp() * mix


def _sigmoid_norm(o: Dpo, p: Sides, f: "Link") -> Tensor:
    return -logsigmoid(o.beta * _per_token(p, f))


PAIR_LOSSES: dict[str, Callable[[Dpo, Sides, "Link"], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
}

Link = Callable[[Tensor], Tensor]


def link(o: Dpo) -> Link:
    """f of the divergence, as a function of the log-ratio t."""
    if o.f == "forward_kl":
        return lambda t: 1 - (-t).exp()
    if o.f == "js":
        return lambda t: math.log(2) + logsigmoid(t)
    if o.f == "alpha" and o.f_alpha != 1:
        k = o.f_alpha - 1
        # beyond e^80 float32 ends, and the gradient should rather be 0 than infinite
        return lambda t: ((k * t).clamp(max=_LARGEST_EXPONENT).exp() - 1) / k
    return lambda t: t


class DpoLoss:
    """The weighted sum of the losses of `options`."""

    def __init__(self, options: Dpo) -> None:
        self.needs, self._options = options.needs, options

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the answers."""
        return Ask(self.needs.stats)

    def summary(self, outputs: Outputs, batch: Batch) -> Tensor:
        """[R, 6]: log-ratio, sum of log-probs, negative log-likelihood, length, mean of log(p / sum p^2), margin."""
        o, logp_T = self._options, outputs.logp_T
        assert logp_T is not None
        weights_T = batch.weights_T.to(logp_T.dtype)
        if o.ld_alpha is not None:
            weights_T = weights_T * tail_factors(
                batch, Pairs.of(batch.group_R, batch.member_R), o.ld_alpha, logp_T.dtype
            )
        reference_T = torch.where(batch.mask_T, batch.columns["ref_logp"].to(logp_T.dtype), 0)
        length_R = row_length(batch, logp_T.dtype)
        gap_R = torch.zeros_like(length_R)
        if o.weighting:
            assert outputs.collision_T is not None
            gap_R = row_sum((logp_T.detach() - outputs.collision_T) * batch.mask_T, batch) / length_R
        margin_R = batch.columns["margin"].to(logp_T.dtype).nan_to_num(0.0) if o.margin else torch.zeros_like(length_R)
        return torch.stack(
            [
                row_sum(weights_T * (logp_T - reference_T), batch),
                row_sum(weights_T * logp_T, batch),
                -row_sum(batch.weights_T * logp_T, batch),
                length_R,
                gap_R,
                margin_R,
            ],
            dim=1,
        )

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The pairs of `batch`."""
        return self._loss(self.summary(outputs, batch), Pairs.of(batch.group_R, batch.member_R), norms)

    def step_loss(self, summary_RS: Tensor, rows: StepRows, norms: Mapping[str, float]) -> Loss:
        """The pairs of a step: `aot` sorts them."""
        return self._loss(summary_RS, Pairs.of(rows.group_R, rows.member_R), norms)

    def _loss(self, summary_RS: Tensor, pairs: Pairs, norms: Mapping[str, float]) -> Loss:
        o = self._options
        ratio, logp, nll, length, gap, margin = (pairs.split(column_R) for column_R in summary_RS.unbind(1))
        sides = Sides(*ratio, *logp, *length, margin[0])
        weight_P = (gap[0] + gap[1]).exp() if o.weighting else torch.ones_like(gap[0])
        f = link(o)
        parts = {}
        for name, weight in o.terms.items():
            if name == "sft":
                parts[name] = weight * nll[0].sum() / norms["chosen_tokens"]
            else:
                parts[name] = weight * (PAIR_LOSSES[name](o, sides, f) * weight_P).sum() / norms["groups"]
        chosen_P, rejected_P = o.beta * sides.a_P.detach(), o.beta * sides.b_P.detach()
        metrics = {
            "reward_chosen": (chosen_P.sum(), "groups"),
            "reward_rejected": (rejected_P.sum(), "groups"),
            "reward_accuracy": ((chosen_P > rejected_P).double().sum(), "groups"),
        }
        total = torch.stack(list(parts.values())).sum()
        return Loss(total, {name: part.detach() for name, part in parts.items()}, metrics)
