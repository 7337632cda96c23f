"""Losses of policy-gradient learning, one file for all of them: four choices that do not know of each other.

    loss = sum over t of share_t * mismatch_t * surrogate(ratio_t, A_t, logp_t) + beta * share_t * kl_t

Level: what a token's ratio is of (the token, its whole sequence). Surrogate: what is made of ratio and advantage.
Share: how tokens add up, known from lengths before the forward pass. Mismatch: the correction for an engine whose
probabilities are not those of the trainer.

Letters: T sampled tokens of all rows, R rows. Everything is over sampled tokens only; there is no padding and no mask.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from postmill.stages.train.objectives.rl_options import Rl

LOG_LIMIT = 20.0
"""Log-ratios are held within this before exp: e^20 is 5e8, and its gradient is already meaningless."""
_LOG_TINY = math.log(1e-8)


class Sampled(NamedTuple):
    """What is known of the sampled tokens. Only `logp_T` (and `entropy_T`, with a bonus) carries a gradient."""

    logp_T: Tensor
    """Log-probability under the weights that are trained, at the sampling temperature."""
    old_T: Tensor
    """The same when this batch's updates began."""
    advantage_T: Tensor
    row_T: Tensor
    """int64, which row a token belongs to."""
    num_rows: int
    ref_T: Tensor | None = None
    """Under the reference model."""
    engine_T: Tensor | None = None
    """As the engine said when it sampled; NaN where it said nothing."""
    entropy_T: Tensor | None = None
    draw_T: Tensor | None = None
    """A number of [0, 1) that belongs to the token in every cut of the step."""
    limits: Mapping[str, float] = MappingProxyType({})
    """Of the step, by which tokens are chosen: see `token_choice.py`."""

    def row_sum(self, values_T: Tensor) -> Tensor:
        """Sum over each row, [R]."""
        return values_T.new_zeros(self.num_rows).index_add(0, self.row_T, values_T)

    def row_mean(self, values_T: Tensor) -> Tensor:
        """Mean over each row, [R]; 0 for a row without tokens."""
        count_R = self.row_sum(torch.ones_like(values_T))
        return self.row_sum(values_T) / count_R.clamp(min=1.0)


def log_importance(level: str, s: Sampled) -> Tensor:
    """Log of each token's importance ratio, [T].

    `token`: its own. `sequence`: the mean over its row (GSPO, <https://arxiv.org/abs/2507.18071>). `sequence_token`:
    that value, with the gradient of the token's own.
    """
    log_ratio_T = s.logp_T - s.old_T
    if level == "token":
        return log_ratio_T
    mean_T = s.row_mean(log_ratio_T)[s.row_T]
    return mean_T if level == "sequence" else mean_T.detach() + s.logp_T - s.logp_T.detach()


def _ppo(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Clipped surrogate, <https://arxiv.org/abs/1707.06347>. `delta` caps the unclipped ratio (INTELLECT-2);
    `dual_clip` bounds the loss where the advantage is negative, <https://arxiv.org/abs/1912.09729>."""
    ratio_T = log_T.exp()
    clipped_T = ratio_T.clamp(1.0 - cfg.clip_low, 1.0 + cfg.clip_high)
    capped_T = ratio_T.clamp(max=cfg.delta) if cfg.delta is not None else ratio_T
    gain_T = torch.minimum(capped_T * s.advantage_T, clipped_T * s.advantage_T)
    if cfg.dual_clip is not None:
        bounded_T = torch.maximum(gain_T, cfg.dual_clip * s.advantage_T)
        gain_T = torch.where(s.advantage_T < 0, bounded_T, gain_T)
    return -gain_T


def _cispo(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """REINFORCE with a capped, detached ratio (MiniMax-M1, <https://arxiv.org/abs/2506.13585>)."""
    assert cfg.cispo_cap is not None
    return -log_T.exp().clamp(max=cfg.cispo_cap).detach() * s.advantage_T * s.logp_T


def _sapo(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Soft gate in place of the clip, <https://arxiv.org/abs/2511.20347>."""
    tau_T = torch.where(s.advantage_T > 0, cfg.sapo_tau_pos, cfg.sapo_tau_neg).to(log_T.dtype)
    return -(tau_T * (log_T.exp() - 1.0)).sigmoid() * 4.0 / tau_T * s.advantage_T


def _vespo(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """REINFORCE weighted by e^lambda w^k e^(-lambda w) of the sequence's ratio w, detached; as in TRL 1.16.

    The engine's mismatch is inside w, so no other correction applies.
    """
    with torch.no_grad():
        log_w_R = s.row_sum((s.logp_T - s.old_T).clamp(-LOG_LIMIT, LOG_LIMIT))
        if s.engine_T is not None and cfg.mismatch != "none":
            log_w_R = log_w_R + s.row_sum(mismatch_weights(cfg, s).log().clamp(_LOG_TINY, LOG_LIMIT))
        log_w_T = log_w_R.clamp(_LOG_TINY, LOG_LIMIT)[s.row_T]
        is_good_T = s.advantage_T >= 0
        k_T = torch.where(is_good_T, 2.0, 3.0).to(log_w_T.dtype)
        lambda_T = torch.where(is_good_T, 3.0, 2.0).to(log_w_T.dtype)
        phi_T = (lambda_T + k_T * log_w_T - lambda_T * log_w_T.exp()).exp().nan_to_num(0.0, 0.0, 0.0)
    return -phi_T * s.advantage_T * s.logp_T


def _gmpo(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Geometric mean of ratios that are clipped in log space, <https://arxiv.org/abs/2507.20673>. The same for all
    tokens of a row, so its share must be `seq_mean_token_mean`."""
    log_ratio_T = s.logp_T - s.old_T
    held_T = log_ratio_T.clamp(-cfg.clip_low, cfg.clip_high)
    clipped_T = torch.where(s.advantage_T > 0, torch.minimum(log_ratio_T, held_T), torch.maximum(log_ratio_T, held_T))
    return -s.row_mean(clipped_T).exp()[s.row_T] * s.advantage_T


def _dppo_tv(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """REINFORCE with a capped ratio where the probability has not moved too far the wrong way: total variation."""
    p_T, old_T = s.logp_T.detach().exp(), s.old_T.exp()
    return _within(s, log_T, (p_T - old_T).abs() <= cfg.dppo_bound)


def _dppo_kl(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """As dppo_tv, with the KL divergence of the two-way choice between the token and all others as the distance."""
    p_T = s.logp_T.detach().exp().clamp(1e-9, 1 - 1e-9)
    old_T = s.old_T.exp().clamp(1e-9, 1 - 1e-9)
    divergence_T = old_T * (old_T / p_T).log() + (1 - old_T) * ((1 - old_T) / (1 - p_T)).log()
    return _within(s, log_T, divergence_T <= cfg.dppo_bound)


def _within(s: Sampled, log_T: Tensor, is_near_T: Tensor) -> Tensor:
    """A token counts while it is near, or moves back: up with a negative advantage, down with a positive one."""
    moves_back_T = (s.logp_T.detach() > s.old_T) != (s.advantage_T > 0)
    kept_T = (is_near_T | moves_back_T).to(log_T.dtype)
    return -kept_T * s.advantage_T * log_T.clamp(max=LOG_LIMIT).exp().clamp(max=LOG_LIMIT).detach() * s.logp_T


def _fipo(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Clipped surrogate, weighted by what a token's change did to the future: exp of the discounted sum of later
    log-ratios of its row, held in [1, 1 + clip_high], as in ms-swift 4.6."""
    gamma = 2.0 ** (-1.0 / cfg.fipo_half_life)
    with torch.no_grad():
        log_ratio = (s.logp_T - s.old_T).tolist()
        rows = s.row_T.tolist()
        future = [0.0] * len(rows)
        total = 0.0
        for t in range(len(rows) - 1, -1, -1):
            total = log_ratio[t] + (gamma * total if t + 1 < len(rows) and rows[t + 1] == rows[t] else 0.0)
            future[t] = total
        influence_T = log_T.new_tensor(future).clamp(-LOG_LIMIT, LOG_LIMIT).exp().clamp(1.0, 1.0 + cfg.clip_high)
        is_runaway_T = (s.advantage_T < 0) & (log_T.exp() > 4.0)
        influence_T = torch.where(is_runaway_T, influence_T.clamp(0.8, 1.0), influence_T)
    return _ppo(cfg, s, log_T) * influence_T


def covariance(advantage_T: Tensor, logp_T: Tensor, limits: Mapping[str, float]) -> Tensor:
    """What a token adds to the covariance of advantages and log-probs over the step, float64 [T]."""
    far_T = advantage_T.double() - limits["mean_advantage"]
    return far_T * (logp_T.detach().double() - limits["mean_logp"])


def _clip_cov(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Clipped surrogate without a drawn part of the tokens whose covariance lies in a band, as in verl 0.8."""
    assert s.draw_T is not None
    covariance_T = covariance(s.advantage_T, s.logp_T, s.limits)
    is_free_T = (covariance_T > cfg.cov_low) & (covariance_T < cfg.cov_high) & ~clipped(cfg, s, log_T).bool()
    is_dropped_T = is_free_T & (s.draw_T.to(s.logp_T.dtype) <= s.limits["draw"])
    return _ppo(cfg, s, log_T).masked_fill(is_dropped_T, 0.0)


def _kl_cov(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Ratio times advantage, not clipped; tokens of the highest covariance pay for their way, as in verl 0.8."""
    is_high_T = covariance(s.advantage_T, s.logp_T, s.limits) >= s.limits["covariance"]
    return -log_T.exp() * s.advantage_T + cfg.cov_kl * log_T.abs() * is_high_T.to(log_T.dtype)


def _dro(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Plain policy gradient that pays for the square of how far the log-prob moved, <https://arxiv.org/abs/2405.19107>."""
    return -s.advantage_T * s.logp_T + 0.5 * cfg.dro_beta * log_T**2


def _reinforce(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """Plain policy gradient, no ratio."""
    return -s.advantage_T * s.logp_T


SURROGATES: dict[str, Callable[[Rl, Sampled, Tensor], Tensor]] = {
    "ppo": _ppo,
    "cispo": _cispo,
    "sapo": _sapo,
    "vespo": _vespo,
    "gmpo": _gmpo,
    "dppo_tv": _dppo_tv,
    "dppo_kl": _dppo_kl,
    "fipo": _fipo,
    "clip_cov": _clip_cov,
    "kl_cov": _kl_cov,
    "dro": _dro,
    "reinforce": _reinforce,
}
"""Name -> loss of each token, [T], from options, tokens and log importance ratios."""


def kl_to_reference(kind: str, logp_T: Tensor, ref_T: Tensor) -> Tensor:
    """Estimate of KL(policy, reference) at each token, [T]: k1, k2 or k3 of Schulman, <http://joschu.net/blog/kl-approx.html>.

    The difference is held within 20 before exp: inf * 0 is NaN.
    """
    log_ratio_T = (ref_T - logp_T).clamp(-LOG_LIMIT, LOG_LIMIT)
    if kind == "k1":
        return -log_ratio_T
    if kind == "k2":
        return 0.5 * log_ratio_T**2
    return log_ratio_T.exp() - log_ratio_T - 1.0


def mismatch_weights(cfg: Rl, s: Sampled) -> Tensor:
    """Weight of each token for the engine's log-probs differing from the trainer's old ones, [T], without gradient.

    `token_truncate` caps the token's ratio, `token_mask` drops tokens outside the bounds, `sequence_*` do so by the
    ratio of the whole row, `geometric_mask` drops rows by the mean log-ratio. A token without a log-prob has ratio 1.
    """
    assert s.engine_T is not None
    level, _, kind = cfg.mismatch.partition("_")
    with torch.no_grad():
        log_T = (s.old_T - s.engine_T).nan_to_num(0.0).clamp(-LOG_LIMIT, LOG_LIMIT)
        if level == "sequence":
            log_T = s.row_sum(log_T)[s.row_T].clamp(-LOG_LIMIT, LOG_LIMIT)
        elif level == "geometric":
            log_T = s.row_mean(log_T)[s.row_T]
        ratio_T = log_T.exp()
        if kind == "truncate":
            return ratio_T.clamp(max=cfg.mismatch_high)
        is_inside_T = (ratio_T <= cfg.mismatch_high) & (ratio_T >= cfg.mismatch_low)
        return torch.where(is_inside_T, torch.ones_like(ratio_T) if level == "geometric" else ratio_T, 0.0)


def off_policy_rows(limit: float, s: Sampled) -> Tensor:
    """1 for tokens of rows to keep, 0 for rows with a negative advantage that the policy has left: mean of
    (sampling - current) log-prob over `limit`, [T]. DeepSeek-V3.2, equation 9."""
    sampling_T = s.old_T if s.engine_T is None else s.engine_T
    with torch.no_grad():
        drift_T = s.row_mean((sampling_T - s.logp_T).nan_to_num(0.0))[s.row_T]
        return ((s.advantage_T >= 0) | (drift_T <= limit)).to(s.logp_T.dtype)


def token_losses(cfg: Rl, s: Sampled) -> dict[str, Tensor]:
    """The terms of the loss at each token, [T] each, before shares: `policy`, and `kl` and `entropy` where asked for.

    Tokens with an entropy below the limit `entropy` take no part in `policy` and `entropy`.
    """
    log_T = log_importance(cfg.level, s)
    policy_T = SURROGATES[cfg.surrogate](cfg, s, log_T)
    if cfg.off_policy_limit is not None:
        policy_T = policy_T * off_policy_rows(cfg.off_policy_limit, s)
    is_live_T = None
    if "entropy" in s.limits:
        assert s.entropy_T is not None
        is_live_T = (s.entropy_T.detach() >= s.limits["entropy"]).to(policy_T.dtype)
        policy_T = policy_T * is_live_T
    if s.engine_T is not None and cfg.mismatch != "none" and cfg.surrogate != "vespo":
        policy_T = policy_T * mismatch_weights(cfg, s)
    terms = {"policy": policy_T}
    if cfg.kl_coef:
        assert s.ref_T is not None
        kl_T = kl_to_reference(cfg.kl, s.logp_T, s.ref_T)
        terms["kl"] = cfg.kl_coef * (kl_T * log_T.exp() if cfg.kl_unbiased else kl_T)
    if cfg.entropy_coef:
        assert s.entropy_T is not None
        entropy_T = s.entropy_T if is_live_T is None else s.entropy_T * is_live_T
        terms["entropy"] = -cfg.entropy_coef * entropy_T
    return terms


def clipped(cfg: Rl, s: Sampled, log_T: Tensor) -> Tensor:
    """1 for tokens whose ratio lies beyond the bound of the clip that their advantage pushes towards, [T]."""
    ratio_T = log_T.exp()
    is_high_T = (ratio_T > 1.0 + cfg.clip_high) & (s.advantage_T > 0)
    is_low_T = (ratio_T < 1.0 - cfg.clip_low) & (s.advantage_T < 0)
    return (is_high_T | is_low_T).to(log_T.dtype)


def mismatch_metrics(s: Sampled) -> dict[str, Tensor]:
    """Sums over tokens that say how far engine and trainer are apart: |difference|, k3, tokens without a log-prob."""
    assert s.engine_T is not None
    with torch.no_grad():
        is_known_T = ~s.engine_T.isnan()
        difference_T = (s.old_T - s.engine_T).nan_to_num(0.0)
        held_T = difference_T.clamp(-LOG_LIMIT, LOG_LIMIT)
        k3_T = held_T.exp() - held_T - 1.0
        return {
            "mismatch": difference_T.abs().sum(),
            "mismatch_k3": (k3_T * is_known_T).sum(),
            "unscored": (~is_known_T).sum().to(difference_T.dtype),
        }
