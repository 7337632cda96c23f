"""Options of learning from sampled answers and their advantages: GRPO and its kin."""

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from postmill.stages.shared.stats import Stat
from postmill.stages.train.objectives.needs import Needs

if TYPE_CHECKING:
    from postmill.stages.train.objectives.interface import Objective

Share = Literal[
    "token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm", "group_mean_token_mean"
]
SHARE_MEASURES: dict[Share, str] = {
    "token_mean": "sampled",
    "seq_mean_token_mean": "live",
    "seq_mean_token_sum": "live",
    "seq_mean_token_sum_norm": "live",
    "group_mean_token_mean": "live_groups",
}
"""What each way of adding up divides by, besides what a row knows of itself."""


class Rl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rl"):
    """Learn from sampled answers and their advantages."""

    surrogate: Literal[
        "ppo",
        "cispo",
        "sapo",
        "vespo",
        "gmpo",
        "dppo_tv",
        "dppo_kl",
        "fipo",
        "clip_cov",
        "kl_cov",
        "dro",
        "reinforce",
    ] = "ppo"
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
    cov_share: Annotated[float, Meta(gt=0, le=1)] = 2e-4
    """Share of the step's tokens that `clip_cov` leaves out and `kl_cov` holds: those whose log-prob and advantage are
    both far above the mean."""
    cov_low: float = 1.0
    """Least covariance of a token that `clip_cov` may leave out."""
    cov_high: float = 5.0
    """Greatest covariance of such a token."""
    cov_kl: Annotated[float, Meta(ge=0)] = 1.0
    """What `kl_cov` makes these tokens pay for each nat that they moved."""
    dro_beta: Annotated[float, Meta(ge=0)] = 0.05
    """What `dro` makes tokens pay for the square of the nats that they moved."""
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
    old: Literal["start", "engine", "current"] = "start"
    """What a ratio compares with: `start`: log-probs of the weights this run starts from (--scores old=DIR, or a pass
    of its own before the first of several steps); `engine`: what the engine said when it sampled, without a
    correction for mismatch; `current`: the weights of each step, so that every ratio is 1."""
    max_mismatch: Annotated[float, Meta(ge=0)] | None = None
    """Fail if, in the first step, log-probs of the engine differ from those of the start by more than this on average.
    Default: 0.02 in float32 and 0.1 in bfloat16 where the samples are of the weights that are trained; otherwise
    nothing is checked. 0 never checks."""
    off_policy_limit: float | None = None
    """Drop answers with a negative advantage once the policy's mean log-prob fell by more than this (DeepSeek-V3.2)."""

    def __post_init__(self) -> None:
        if self.surrogate == "cispo" and self.cispo_cap is None:
            raise ValueError("surrogate cispo needs cispo_cap, the cap on the ratio itself; 5 is usual")
        if self.share == "seq_mean_token_sum_norm" and self.max_tokens is None:
            raise ValueError("share seq_mean_token_sum_norm needs max_tokens")
        if self.old == "engine" and self.mismatch != "none":
            raise ValueError("old engine leaves no mismatch to correct: it needs mismatch none")
        if self.surrogate == "gmpo" and self.share != "seq_mean_token_mean":
            raise ValueError("surrogate gmpo is a value of a whole answer: it needs share seq_mean_token_mean")

        if self.is_by_covariance and self.entropy_quantile < 1:
            raise ValueError(
                f"surrogate {self.surrogate} chooses tokens itself: it leaves no room for entropy_quantile"
            )

    @property
    def is_by_covariance(self) -> bool:
        """Whether tokens are chosen by their covariance."""
        return self.surrogate in ("clip_cov", "kl_cov")

    @property
    def needs(self) -> Needs:
        """See `Needs`."""
        stats: set[Stat] = {"logp"}
        columns = ["advantage", "advantages", "engine_logp"]
        if self.share == "group_mean_token_mean":
            columns.append("group_tokens")
        if self.old == "start":
            columns.append("old_logp")
        if self.kl_coef:
            columns.append("ref_logp")
        if self.entropy_coef or self.entropy_quantile < 1:
            stats.add("entropy")
        return Needs(
            stats=frozenset(stats),
            columns=tuple(columns),
            own=("old_logp",),
            sampled=True,
            compares_sampler=self.mismatch != "none" or self.old == "engine" or self.off_policy_limit is not None,
            coupling="step_constants" if self.entropy_quantile < 1 or self.is_by_covariance else "row",
            measures=tuple(dict.fromkeys((SHARE_MEASURES[self.share], "sampled"))),
        )

    def build(self) -> "Objective":
        """The loss."""
        from postmill.stages.train.objectives.rl import RlLoss

        return RlLoss(self)


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
    "clip_cov": Rl(surrogate="clip_cov", clip_high=0.2),
    "kl_cov": Rl(surrogate="kl_cov"),
    "dro": Rl(surrogate="dro"),
    "reinforce": Rl(surrogate="reinforce"),
}
"""Published methods as options."""
