"""Options of `reward`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.reward.by_token_options import ByToken
from postmill.stages.reward.code_options import Code
from postmill.stages.reward.rubric_options import Judge
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.spec import SAME_BYTES, Port, Stage

Advantage = Literal[
    "grpo", "group_mean", "batch", "rloo", "reinforce_pp", "gdpo", "max_rl", "opo", "none", "gae", "opd"
]


class Reward(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Score rollouts with reward functions, and turn the scores into advantages, pairs, labels or training rows."""

    weights: list[float] = []
    """Weight of each `--func` in the total reward, then of each `--rubric` and `--scores`, in their order: 1,0.2.
    Default: 1 each."""
    advantage: Advantage = "grpo"
    """How a reward is compared with the others of its prompt. `grpo`: minus the group's mean, over its standard
    deviation; `group_mean`: minus the mean (Dr. GRPO); `batch`: minus the group's mean, over the standard deviation of
    all rewards; `rloo`: minus the mean of the others; `reinforce_pp`: as `group_mean`, then over the standard deviation
    of all advantages; `gdpo`: each function by itself, then their sum over all rows; `max_rl`: over the mean; `opo`:
    minus the mean weighted by length; `none`: the reward itself; `gae`: by token, from a critic's --values (without
    them, what was earned); `opd`: by token, how much likelier --teacher finds it, whatever the reward."""
    by_token: ByToken = ByToken()
    """What tokens are worth one by one."""
    keep: Literal["all", "mixed"] = "all"
    """`mixed` leaves out prompts all of whose samples have the same reward: there is nothing to learn from them."""
    min_pass: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Leave out prompts whose mean reward is lower (too hard)."""
    max_pass: Annotated[float, Meta(ge=0)] | None = None
    """Leave out prompts whose mean reward is higher (too easy)."""
    overlong: Literal["keep", "drop"] = "keep"
    """`drop` leaves out samples that were cut at the length limit; they still count in their group's mean."""
    emit: Literal["rewards", "pairs", "labels", "sft"] = "rewards"
    """What to write. `rewards`: a row for each rollout. The others are tokens to train on: `pairs`: the best and the
    worst sample of each prompt, for DPO; `labels`: every sample, good or bad, for KTO; `sft`: the best samples."""
    min_gap: Annotated[float, Meta(ge=0)] = 1e-6
    """Smallest difference of rewards that makes a pair."""
    threshold: float = 0.5
    """Reward from which on a sample is good, for `labels`, `sft` and the pass_at of the metrics."""
    best: Annotated[int, Meta(ge=1)] = 1
    """Samples of a prompt that `sft` takes at most, the best first."""
    solution: str = "solution"
    """Column of the prompts that holds the right answer, for the built-in functions."""
    max_answer_tokens: Annotated[int, Meta(ge=1)] = 1024
    """Length limit that `cosine` and `soft_overlong` refer to."""
    soft_tokens: Annotated[int, Meta(ge=1)] = 256
    """Tokens before that limit over which `soft_overlong` grows from 0 to -1."""
    code: Code = Code()
    """Programs that --func code runs."""
    judge: Judge = Judge()
    """Grades by --rubric."""
    endpoint: Endpoint = Endpoint()
    """The server whose model grades by --rubric."""
    time_limit_s: Annotated[float, Meta(gt=0)] = 10.0
    """Longest time that a function may take for one row."""
    memory_mb: Annotated[int, Meta(ge=64)] = 4096
    """Most memory that a worker process may map."""
    on_raise: Literal["null", "zero"] = "null"
    """What a function that raises gives its row: no score, or 0. A time-out or a crash never gives a score."""
    max_failed: Annotated[float, Meta(ge=0, le=1), SAME_BYTES] = 0.01
    """Fail if a larger share of a function's scores is missing because it failed."""
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    """Seed that functions may ask for."""

    def __post_init__(self) -> None:
        if self.max_pass is not None and self.max_pass < self.min_pass:
            raise ValueError(f"max_pass {self.max_pass:g} is below min_pass {self.min_pass:g}")
        if self.soft_tokens > self.max_answer_tokens:
            raise ValueError(f"soft_tokens {self.soft_tokens} exceeds max_answer_tokens {self.max_answer_tokens}")


def output_kind(cfg: Any) -> str:
    """`rewards`, or `tokens` for rows to train on."""
    return "rewards" if cfg.emit == "rewards" else "tokens"


STAGE = Stage(
    name="reward",
    version=4,  # a mean below 0 is not too hard unless min_pass says so
    config=Reward,
    inputs={
        "rollouts": Port(kinds=("rollouts",), help="rollouts artifacts, scored as one", many=True),
        "functions": Port(
            kinds=("function",),
            flag="--func",
            help="a reward function: the name of a built-in one (exact, contains, number, math, format, repetition,"
            " cosine, soft_overlong, react_format, env, tool_calls, toolbench, ifeval, code), reasoning-gym:dataset, or"
            " file.py:name",
            many=True,
            required=False,
            resolver="postmill.stages.reward.inputs:resolve",
        ),
        "rubrics": Port(
            kinds=("function",),
            flag="--rubric",
            help="a text that says what a good answer is like: the model at --url grades by it; one more function,"
            " named after the file",
            many=True,
            required=False,
            resolver="postmill.stages.reward.rubric:resolve",
        ),
        "scores": Port(
            kinds=("scores",),
            flag="--scores",
            named=True,
            many=True,
            required=False,
            help="what a reward model said of these rollouts (postmill score), as one more function: NAME=DIR",
        ),
        "values": Port(
            kinds=("scores",),
            flag="--values",
            required=False,
            help="a critic's values of these rollouts, for --advantage gae (postmill score with what --objective value"
            " trained)",
        ),
        "ref": Port(
            kinds=("scores",), flag="--ref", required=False, help="log-probs of a reference model, for --kl-coef"
        ),
        "teacher": Port(
            kinds=("scores",),
            flag="--teacher",
            required=False,
            help="log-probs of a teacher: tokens that it finds likelier than the policy did are worth more",
        ),
        "reuse": Port(
            kinds=("rewards",),
            flag="--reuse",
            help="rewards of the same rollouts: scores of unchanged functions are copied from them",
            required=False,
        ),
    },
    output=output_kind,
    example="postmill reward rollouts/ --func number --func format --weights 1,0.2 -o rewards/",
)
