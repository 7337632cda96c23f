"""Tokens that are chosen by numbers of the whole step: those of high entropy, or those of high covariance.

A pass without gradients tells these numbers of every token. Out of them come the limits of the step, and the loss sets
each token against the limits, so it does not depend on how the step is cut. Letters: N sampled tokens of a batch, K
numbers of each.
"""

from typing import Protocol

import torch
from torch import Tensor

from postmill.stages.train.objectives.policy_loss import Sampled, clipped, covariance, log_importance
from postmill.stages.train.objectives.rl_options import Rl


class Choice(Protocol):
    """A way to choose."""

    width: int
    """K."""

    def seen(self, s: Sampled) -> Tensor:
        """[N, K]: what the step has to know of each token."""

    def limits(self, seen_NK: Tensor) -> dict[str, float]:
        """Limits from all tokens of the step, float64 [N, K]."""


class HighEntropy:
    """The share `entropy_quantile` of the tokens that has the highest entropy, <https://arxiv.org/abs/2506.01939>."""

    width = 1

    def __init__(self, cfg: Rl) -> None:
        self._share = cfg.entropy_quantile

    def seen(self, s: Sampled) -> Tensor:
        """Entropies."""
        assert s.entropy_T is not None
        return s.entropy_T[:, None]

    def limits(self, seen_NK: Tensor) -> dict[str, float]:
        """`entropy`: from which on a token is trained on."""
        known = seen_NK[:, 0].sort()[0]
        at = (1.0 - self._share) * (len(known) - 1)
        low = int(at)
        high = min(low + 1, len(known) - 1)
        return {"entropy": float(known[low] + (at - low) * (known[high] - known[low]))}


class HighCovariance:
    """Tokens whose log-prob and advantage are both far above their means, <https://arxiv.org/abs/2505.22617>: they are
    what makes entropy fall. `kl_cov` takes those of the highest covariance, `clip_cov` draws among those in a band."""

    width = 3

    def __init__(self, cfg: Rl) -> None:
        self._cfg = cfg

    def seen(self, s: Sampled) -> Tensor:
        """Advantage, log-prob, and a number drawn for the token; infinite where the ratio is clipped already."""
        assert s.draw_T is not None
        is_clipped_N = clipped(self._cfg, s, log_importance(self._cfg.level, s)).bool()
        draw_N = s.draw_T.masked_fill(is_clipped_N, float("inf"))
        return torch.stack([s.advantage_T, s.logp_T, draw_N.to(s.logp_T.dtype)], 1)

    def limits(self, seen_NK: Tensor) -> dict[str, float]:
        """The means, and `covariance` (kl_cov: the least that is chosen) or `draw` (clip_cov: the greatest)."""
        cfg = self._cfg
        advantage_N, logp_N, draw_N = seen_NK.unbind(1)
        means = {"mean_advantage": float(advantage_N.mean()), "mean_logp": float(logp_N.mean())}
        covariance_N = covariance(advantage_N, logp_N, means)
        count = max(1, int(cfg.cov_share * len(covariance_N)))
        if cfg.surrogate == "kl_cov":
            return means | {"covariance": float(covariance_N.topk(count).values[-1])}
        is_free_N = (covariance_N > cfg.cov_low) & (covariance_N < cfg.cov_high) & draw_N.isfinite()
        drawn = draw_N[is_free_N].sort()[0]
        return means | {"draw": float(drawn[min(count, len(drawn)) - 1]) if len(drawn) else -1.0}


def choice_of(cfg: Rl) -> Choice | None:
    """What these options choose by; None where every token takes part."""
    if cfg.is_by_covariance:
        return HighCovariance(cfg)
    return HighEntropy(cfg) if cfg.entropy_quantile < 1 else None


def draws(row_N: Tensor, place_N: Tensor) -> Tensor:
    """float64 [N] in [0, 1): a number for each token, of its row's ordinal and its place in the row alone.

    The finaliser of splitmix64, in int64 that wraps, with shifts that fill with zeros.
    """
    value = row_N * 0x1E3779B97F4A7C15 + place_N + 1
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        value = (value ^ ((value >> shift) & ((1 << (64 - shift)) - 1))) * factor
    value = value ^ ((value >> 31) & ((1 << 33) - 1))
    return ((value >> 11) & ((1 << 53) - 1)).double() / 2.0**53
