"""From answers to rewards: the weighted sum, what it is worth beside its group, and which samples are left out."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from postmill.stages.protocol import Input
from postmill.stages.reward import emit
from postmill.stages.reward.advantages import ESTIMATORS, Groups, group_kinds
from postmill.stages.reward.answers import NO_ROLLOUT
from postmill.stages.reward.by_token import Credit, TokenSample, add_teacher, by_row, credit_gae, divergences
from postmill.stages.reward.config import Reward
from postmill.stages.reward.row import Answer


def judge(
    cfg: Reward,
    rows: list[dict[str, Any]],
    answers: list[list[Answer]],
    judges: list[tuple[Input, float]],
    tokens: list[TokenSample],
) -> list[emit.Judged]:
    """Reward, advantage and fate of every sample."""
    scores = np.array([[np.nan if a.score is None else a.score for a in column] for column in answers]).T
    scores = scores.reshape(len(rows), len(answers))
    weights = [weight for _, weight in judges]
    given = ~np.isnan(scores)
    reward = np.where(given.any(1), np.where(given, scores * weights, 0.0).sum(1), np.nan)
    _, group = np.unique(np.array([row["prompt_id"] for row in rows], "S16"), return_inverse=True)
    kinds = group_kinds(group, reward, 1e-12)
    reasons = _drop_reasons(cfg, rows, group, reward, kinds)
    there = ~np.isnan(reward)
    lengths = np.array([row["num_sampled"] for row in rows], np.float64)
    advantage = np.full(len(rows), np.nan)
    shaped = reward - divergences(cfg.by_token, tokens) if tokens and cfg.advantage != "gae" else reward
    members = Groups(group[there], shaped[there], scores[there], np.array(weights), lengths[there])
    advantage[there] = ESTIMATORS.get(cfg.advantage, ESTIMATORS["none"])(members)
    needs_group = cfg.advantage not in ("none", "gae", "opd")
    if cfg.advantage == "opd":
        advantage[:] = 0.0
    return [
        emit.Judged(
            row_id=row["row_id"],
            prompt_id=row["prompt_id"],
            scores=[column[number].score for column in answers],
            errors=[
                {"function": function.name, "reason": column[number].reason, "detail": column[number].detail}
                for (function, _), column in zip(judges, answers, strict=True)
                if column[number].reason
            ],
            reward=_or_none(reward[number]),
            advantage=None if kinds[number] == "few" and needs_group else _or_none(advantage[number]),
            group_kind=kinds[number],
            drop_reason=reasons[number],
        )
        for number, row in enumerate(rows)
    ]


def credits_of(
    cfg: Reward, tokens: list[TokenSample], table: list[emit.Judged], judges: list[tuple[Input, float]]
) -> dict[int, Credit]:
    """What the tokens of each row get, where that differs by token."""
    if not tokens or (cfg.advantage != "gae" and "teacher" not in tokens[0].signals):
        return {}
    credits = [Credit()] * len(tokens)
    if cfg.advantage == "gae":
        env = sum(weight for function, weight in judges if function.name == "env")
        reward = np.array([np.nan if line.reward is None else line.reward for line in table])
        alive = np.array([line.drop_reason is None for line in table])
        credits = credit_gae(cfg.by_token, tokens, reward, env, alive)
    advantage = np.array([np.nan if line.advantage is None else line.advantage for line in table])
    return by_row(tokens, add_teacher(cfg.by_token, tokens, advantage, credits))


def with_credit(line: emit.Judged, row_id: bytes, credit: Credit | None) -> emit.Judged:
    """The line of a row, which may be one of several branches of its sample."""
    line = msgspec.structs.replace(line, row_id=row_id)
    if credit is None or credit.advantages is None or line.advantage is None or not len(credit.advantages):
        return line
    lists = {name: None if part is None else part.tolist() for name, part in credit._asdict().items()}
    return msgspec.structs.replace(line, advantage=float(credit.advantages.mean()), **lists)


def _drop_reasons(
    cfg: Reward, rows: list[dict[str, Any]], group: NDArray[np.int64], reward: NDArray[np.float64], kinds: list[str]
) -> list[str | None]:
    """Why each row is not to be trained on, or None."""
    there = ~np.isnan(reward)
    count = np.bincount(group[there], minlength=int(group.max()) + 1)
    total = np.bincount(group[there], reward[there], minlength=len(count))
    mean = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    reasons: list[str | None] = []
    for number, row in enumerate(rows):
        passed = mean[group[number]]
        if row["error"] is not None:
            reasons.append(NO_ROLLOUT)
        elif not there[number] and cfg.advantage != "opd":
            reasons.append("no_reward")
        elif cfg.keep == "mixed" and kinds[number] != "mixed":
            reasons.append("same_rewards" if kinds[number] != "few" else "few_rewards")
        elif cfg.min_pass > 0 and passed < cfg.min_pass:  # rewards may be negative
            reasons.append("too_hard")
        elif cfg.max_pass is not None and passed > cfg.max_pass:
            reasons.append("too_easy")
        elif cfg.overlong == "drop" and row["finish"] == "length":
            reasons.append("overlong")
        else:
            reasons.append(None)
    return reasons


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
