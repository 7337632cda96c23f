"""Policy-gradient objectives: options and shares. The losses are in `policy_loss.py`, which needs torch."""

from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Share = Literal[
    "token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm", "group_mean_token_mean"
]


class Rl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rl"):
    """Learn from sampled answers and their advantages."""

    surrogate: Literal["ppo", "cispo", "sapo", "vespo", "gmpo", "dppo_tv", "dppo_kl", "fipo", "reinforce"] = "ppo"
    """What is made of a token's ratio and advantage: `ppo` is the clipped surrogate of GRPO and its kin."""
    level: Literal["token", "sequence", "sequence_token"] = "token"
    """What a ratio is of: each token; the whole answer (GSPO); or the answer with the gradient of the token."""
    share: Share = "token_mean"
    """How tokens add up. `token_mean`: every token counts the same (DAPO); `seq_mean_token_mean`: every answer counts
    the same (GRPO); `seq_mean_token_sum`: answers' sums, over their number (LUSPO); `seq_mean_token_sum_norm`: over
    `max_tokens` as well (Dr. GRPO); `group_mean_token_mean`: every prompt counts the same."""
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Length that `seq_mean_token_sum_norm` divides by: the longest answer that was allowed."""
    clip_low: Annotated[float, Meta(ge=0)] = 0.2
    """A ratio is clipped at 1 minus this."""
    clip_high: Annotated[float, Meta(ge=0)] = 0.28
    """A ratio is clipped at 1 plus this."""
    delta: Annotated[float, Meta(gt=1)] | None = None
    """Cap on the ratio that is not clipped."""
    dual_clip: Annotated[float, Meta(gt=1)] | None = None
    """Bound of the loss for negative advantages, in advantages; 3 is usual."""
    cispo_cap: Annotated[float, Meta(gt=0)] | None = None
    """Cap on the ratio of `cispo`; 5 is usual. It has no default: tools disagree on what it means."""
    sapo_tau_pos: Annotated[float, Meta(gt=0)] = 1.0
    """Sharpness of `sapo`'s gate for positive advantages."""
    sapo_tau_neg: Annotated[float, Meta(gt=0)] = 1.05
    """Sharpness of `sapo`'s gate for the others."""
    dppo_bound: Annotated[float, Meta(gt=0)] = 0.2
    """How far a token's probability may have moved under `dppo_tv` and `dppo_kl`."""
    fipo_half_life: Annotated[float, Meta(gt=0)] = 32.0
    """Tokens after which a later token counts half under `fipo`."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimate of the divergence from the reference."""
    kl_coef: Annotated[float, Meta(ge=0)] = 0.0
    """Strength of that divergence in the loss; above 0 it needs reference log-probs."""
    kl_unbiased: bool = True
    """Multiply the divergence by the ratio, which makes its gradient that of the divergence."""
    entropy_coef: float = 0.0
    """Strength of the entropy bonus."""
    entropy_quantile: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Train only on this share of the tokens, those with the highest entropy."""
    mismatch: Literal[
        "none",
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
        "geometric_mask",
    ] = "sequence_mask"
    """Correction for an engine whose log-probs are not the trainer's: ratios of tokens or whole answers, capped or,
    out of bounds, dropped."""
    mismatch_low: Annotated[float, Meta(ge=0)] = 0.0
    """Lowest ratio that `*_mask` keeps."""
    mismatch_high: Annotated[float, Meta(gt=0)] = 3.0
    """Highest ratio that `*_mask` keeps and `*_truncate` gives."""
    off_policy_limit: float | None = None
    """Drop answers with a negative advantage once the policy's mean log-prob fell by more than this (DeepSeek-V3.2)."""

    def __post_init__(self) -> None:
        if self.surrogate == "cispo" and self.cispo_cap is None:
            raise ValueError("surrogate cispo needs cispo_cap, the cap on the ratio itself; 5 is usual")
        if self.share == "seq_mean_token_sum_norm" and self.max_tokens is None:
            raise ValueError("share seq_mean_token_sum_norm needs max_tokens")
        if self.surrogate == "gmpo" and self.share != "seq_mean_token_mean":
            raise ValueError("surrogate gmpo is a value of a whole answer: it needs share seq_mean_token_mean")


PRESETS: dict[str, Rl] = {
    "grpo": Rl(share="seq_mean_token_mean", clip_high=0.2),
    "dapo": Rl(),
    "cispo": Rl(surrogate="cispo", cispo_cap=5.0),
    "gspo": Rl(level="sequence", share="seq_mean_token_mean", clip_low=3e-4, clip_high=4e-4),
    "sapo": Rl(surrogate="sapo", share="seq_mean_token_mean"),
    "luspo": Rl(level="sequence", share="seq_mean_token_sum"),
    "vespo": Rl(surrogate="vespo"),
    "gmpo": Rl(surrogate="gmpo", share="seq_mean_token_mean", clip_low=0.4, clip_high=0.4),
    "dppo": Rl(surrogate="dppo_tv"),
    "fipo": Rl(surrogate="fipo", clip_high=0.2),
    "reinforce": Rl(surrogate="reinforce"),
}
"""Published methods as options."""


def row_shares(
    share: Share, tokens_R: NDArray[np.int64], group_R: NDArray[np.int64], max_tokens: int | None
) -> NDArray[np.float64]:
    """What each token of a row is multiplied by, for all live rows of a step: their lengths decide, nothing else.

    tokens_R: sampled tokens of each row, 0 for a row that is not trained on. group_R: its prompt, from 0. Returns [R].
    The sum over tokens is 1 for a mean of means. Raises ValueError if no row has tokens.
    """
    live_R = tokens_R > 0
    if not live_R.any():
        raise ValueError("no sampled token to train on")
    count = float(live_R.sum())
    tokens = np.maximum(tokens_R, 1).astype(np.float64)
    if share == "token_mean":
        value_R = np.full(len(tokens_R), 1.0 / tokens_R.sum())
    elif share == "seq_mean_token_mean":
        value_R = 1.0 / (count * tokens)
    elif share == "seq_mean_token_sum":
        value_R = np.full(len(tokens_R), 1.0 / count)
    elif share == "seq_mean_token_sum_norm":
        assert max_tokens is not None
        value_R = np.full(len(tokens_R), 1.0 / (count * max_tokens))
    else:
        of_group = np.bincount(group_R, tokens_R)
        value_R = 1.0 / ((of_group > 0).sum() * np.maximum(of_group, 1)[group_R])
    return np.where(live_R, value_R, 0.0)
