"""What the manifest says of rewards: numbers by function, by kind of group, and over all."""

import math
import statistics
from typing import Any

from postmill.stages.protocol import Input
from postmill.stages.reward import emit
from postmill.stages.reward.row import Answer


def summarize(
    table: list[emit.Judged],
    rows: list[dict[str, Any]],
    functions: list[Input],
    weights: list[float],
    answers: list[list[Answer]],
    *,
    threshold: float,
) -> dict[str, Any]:
    """What the manifest says of the rewards: by function, by kind of group, and the mean."""
    by_function = []
    for function, weight, column in zip(functions, weights, answers, strict=True):
        scores = [answer.score for answer in column if answer.score is not None]
        reasons = sorted({answer.reason for answer in column if answer.reason})
        by_function.append(
            {
                "name": function.name,
                "weight": weight,
                "mean": statistics.fmean(scores) if scores else None,
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "missing": len(column) - len(scores),
                "failed": {reason: sum(a.reason == reason for a in column) for reason in reasons},
            }
        )
    finishes = [row["finish"] for row in rows]
    kind_of = {line.prompt_id: line.group_kind for line in table}
    rewards = [line.reward for line in table if line.reward is not None]
    good: dict[bytes, list[bool]] = {}
    for line in table:
        if line.reward is not None:
            good.setdefault(line.prompt_id, []).append(line.reward >= threshold)
    return {
        "functions": by_function,
        "groups": {kind: list(kind_of.values()).count(kind) for kind in sorted(set(kind_of.values()))},
        "reward_mean": statistics.fmean(rewards) if rewards else None,
        "pass_at": pass_at(list(good.values())),
        "prompts": len(kind_of),
        "finish": {finish: finishes.count(finish) for finish in sorted(set(finishes))},
    }


def pass_at(groups: list[list[bool]]) -> dict[str, float]:
    """Chance that the best of k samples of a prompt is good, mean over prompts, for k = 1, 2, 4, ... that all have.

    groups: by prompt, whether each sample is good. Unbiased: 1 - C(n - c, k) / C(n, k) for c good ones of n, from
    Evaluating Large Language Models Trained on Code, <https://arxiv.org/abs/2107.03374>.
    """
    fewest = min(map(len, groups), default=0)
    found = {}
    k = 1
    while k <= fewest:
        missed = [math.comb(len(group) - sum(group), k) / math.comb(len(group), k) for group in groups]
        found[str(k)] = 1 - statistics.fmean(missed)
        k *= 2
    return found
