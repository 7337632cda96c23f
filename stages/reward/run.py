"""Reward: run the functions in worker processes, sum their scores, compare within groups, write what was asked for.

No engine is touched: rewards are a function of stored rollouts, so another reward is another run of this stage only,
and scores of functions that did not change are copied from an earlier run.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from postmill.io.digest import digest_bytes
from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.manifest import Artifact
from postmill.io.rollouts import REWARDS, read_rollouts
from postmill.io.schemas import REWARDS_V1
from postmill.io.table import TableReader
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.reward import emit
from postmill.stages.reward.advantages import ESTIMATORS, Groups, group_kinds
from postmill.stages.reward.by_token import (
    Credit,
    TokenSample,
    add_teacher,
    by_row,
    check_ports,
    credit_gae,
    divergences,
    read_samples,
)
from postmill.stages.reward.config import Reward
from postmill.stages.reward.pool import Pool
from postmill.stages.reward.row import Answer, Row
from postmill.stages.reward.scored import scored

_COLUMNS = ["row_id", "prompt_id", "source", "line", "length", "sample", "attempt", "branch", "finish", "sampled"]
_TEXTS = ["output", "prompt", "transcript", "extra", "step_rewards", "error"]
_NO_ROLLOUT = "rollout_failed"


def run(cfg: Reward, inputs: Inputs, out: Out) -> Result:
    """Make rewards, or tokens of the best rows.

    Raises ConfigError (2), StageError (1, 65 when too many scores of a function failed), ArtifactError as readers do.
    """
    scores = [msgspec.structs.replace(item, name=item.port.removeprefix("scores.")) for item in inputs["scores"]]
    functions = [*inputs["functions"], *scores]
    check_ports(cfg.advantage, cfg.by_token, inputs)
    if not functions and cfg.advantage != "opd":
        raise ConfigError("reward: nothing says what is good; pass --func, or --scores of a reward model", USAGE)
    weights = _weights(cfg, functions)
    artifacts = [item.artifact for item in inputs["rollouts"] if item.artifact is not None]
    every = read_rollouts(artifacts, _COLUMNS + _TEXTS)
    if not every:
        raise ArtifactError(f"{artifacts[0].path}: no rollouts to score", BAD_DATA)
    ends = _last_branches(every)
    rows = [every[number] | _of_sample(every, number) for number in ends.values()]
    old = inputs["reuse"][0].artifact if inputs["reuse"] else None
    known = _copied(old, functions, every) | scored(scores, every)
    copied = {name: [column[number] for number in ends.values()] for name, column in known.items()}
    answers = _answers(cfg, functions, rows, copied, out)
    for function, column in zip(functions, answers, strict=True):
        _check_failures(cfg, function.name, column)
    tokens = read_samples(inputs, artifacts, every, _logps(artifacts)) if _needs_tokens(cfg, inputs) else []
    judges = list(zip(functions, weights, strict=True))
    table = _judged(cfg, rows, answers, judges, tokens)
    kind = "rewards" if cfg.emit == "rewards" else cfg.emit
    if cfg.emit == "rewards":
        of_sample = dict(zip(ends, table, strict=True))
        credits = _credits(cfg, tokens, table, judges)
        emit.write_rewards(
            [
                _with_credit(of_sample[_sample_of(row)], row["row_id"], credits.get(number))
                for number, row in enumerate(every)
            ],
            out,
        )
    else:
        emit.write_tokens(cfg, dict(zip(ends.values(), table, strict=True)), every, artifacts, out)
    metrics = _metrics(table, rows, functions, weights, answers, threshold=cfg.threshold) | {"emit": kind}
    sources = [name for artifact in artifacts for name in artifact.manifest.metrics.get("sources", [])]
    return Result(metrics=metrics | {"sources": sources}, digests=dict(artifacts[0].manifest.digests))


def _sample_of(row: Mapping[str, Any]) -> tuple[bytes, int, int]:
    return row["prompt_id"], row["sample"], row["attempt"]


def _last_branches(every: list[dict[str, Any]]) -> dict[tuple[bytes, int, int], int]:
    """Number of the row in which each sample ends, in their order: a sample is judged once, whatever its branches."""
    return {_sample_of(row): number for number, row in enumerate(every)}


def _of_sample(every: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """What a sample's branches have together."""
    first = number - every[number]["branch"]
    branches = every[first : number + 1]
    given = [step["value"] for row in branches for step in row["step_rewards"] or []]
    return {
        "num_sampled": sum(span["end"] - span["start"] for row in branches for span in row["sampled"]),
        "env_reward": math.fsum(given) if given else None,
    }


def _weights(cfg: Reward, functions: list[Input]) -> list[float]:
    names = [function.name for function in functions]
    if len(set(names)) < len(names):
        raise ConfigError(f"--func: {', '.join(names)}: a function is named twice", USAGE)
    if cfg.weights and len(cfg.weights) != len(names):
        raise ConfigError(f"--weights: {len(cfg.weights)} weights for {len(names)} functions", USAGE)
    return cfg.weights or [1.0] * len(names)


def _record(row: Mapping[str, Any], seed: int) -> Row:
    """What a function sees of a rollout."""
    return Row(
        output=row["output"] or "",
        messages=msgspec.json.decode(row["prompt"] or b"[]"),
        transcript=msgspec.json.decode(row["transcript"] or b"[]"),
        finish=row["finish"],
        num_tokens=row["num_sampled"],
        env_reward=row["env_reward"],
        sample=row["sample"],
        columns=msgspec.json.decode(row["extra"] or b"{}"),
        seed=int.from_bytes(bytes.fromhex(digest_bytes(row["row_id"] + seed.to_bytes(8, "big"))[7:15]), "big"),
    )


def _answers(
    cfg: Reward, functions: list[Input], rows: list[dict[str, Any]], copied: dict[str, list[Answer]], out: Out
) -> list[list[Answer]]:
    """Each function's answers, in the order of the rows. A rollout that failed is asked about by no function."""
    alive = [number for number, row in enumerate(rows) if row["error"] is None]
    records = [_record(rows[number], cfg.seed) for number in alive]
    options = {
        "solution": cfg.solution,
        "max_answer_tokens": cfg.max_answer_tokens,
        "soft_tokens": cfg.soft_tokens,
    }
    columns: list[list[Answer]] = []
    fresh = [function for function in functions if function.name not in copied]
    num_workers = min(out.threads, max(1, len(records)))
    pool = Pool(num_workers if fresh else 0, time_limit_s=cfg.time_limit_s, memory_mb=cfg.memory_mb)
    with pool:
        for function in functions:
            if function.name in copied:
                columns.append(copied[function.name])
                continue
            column = [Answer(reason=_NO_ROLLOUT)] * len(rows)
            meter = Meter(len(records))
            reference = f"{function.path}:{function.name.rpartition(':')[2]}" if function.path else function.name
            for done, (number, answer) in enumerate(pool.run(reference, options, records), 1):
                column[alive[number]] = _settle(cfg, answer)
                Progress.say("reward", f"{function.name}: {meter.of(done, 'rows')}")
            columns.append(column)
    return columns


def _settle(cfg: Reward, answer: Answer) -> Answer:
    """An answer with `on_raise` applied: the reason stays, so that it is counted."""
    if answer.reason == "raised" and cfg.on_raise == "zero":
        return Answer(score=0.0, reason=answer.reason, detail=answer.detail)
    return answer


def _copied(old: Artifact | None, functions: list[Input], rows: list[dict[str, Any]]) -> dict[str, list[Answer]]:
    """Answers of functions that have not changed, from earlier rewards. Raises ArtifactError (78) for other rows."""
    if old is None:
        return {}
    known = {entry.digest for entry in old.manifest.inputs if entry.port == "functions"}
    names = [entry["name"] for entry in old.manifest.metrics["functions"]]
    found = [batch for reader in [TableReader(old.file(REWARDS), REWARDS_V1)] for batch in reader]
    lines = [line for batch in found for line in batch.to_pylist()]
    if [line["row_id"] for line in lines] != [row["row_id"] for row in rows]:
        raise ArtifactError(f"{old.path}: rewards of other rollouts; leave out --reuse", MISMATCH)
    columns: dict[str, list[Answer]] = {}
    for function in functions:
        if function.digest not in known or function.name not in names:
            continue
        index = names.index(function.name)
        reasons = [{e["function"]: e for e in line["errors"]}.get(function.name) for line in lines]
        columns[function.name] = [
            Answer(score=line["scores"][index], reason=e["reason"] if e else "", detail=e["detail"] if e else "")
            for line, e in zip(lines, reasons, strict=True)
        ]
    return columns


def _check_failures(cfg: Reward, name: str, column: list[Answer]) -> None:
    """Raise StageError (65) if a function failed on more rows than allowed."""
    asked = [answer for answer in column if answer.reason != _NO_ROLLOUT]
    failed = [answer for answer in asked if answer.reason and answer.score is None]
    if len(failed) > cfg.max_failed * len(asked):
        first = failed[0]
        raise StageError(
            f"--func {name}: failed on {len(failed)} of {len(asked)} rows, more than --max-failed {cfg.max_failed:.2%};"
            f" the first: {first.reason} {first.detail}".rstrip(),
            BAD_DATA,
        )


def _judged(
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


def _needs_tokens(cfg: Reward, inputs: Inputs) -> bool:
    return cfg.emit == "rewards" and (cfg.advantage == "gae" or bool(inputs["ref"] or inputs["teacher"]))


def _logps(artifacts: list[Artifact]) -> list[Any]:
    """What the sampler said of its tokens, by row."""
    return [row["logp"] for row in read_rollouts(artifacts, ["logp"])]


def _credits(
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


def _with_credit(line: emit.Judged, row_id: bytes, credit: Credit | None) -> emit.Judged:
    """The line of a row, which may be one of several branches of its sample."""
    line = msgspec.structs.replace(line, row_id=row_id)
    if credit is None or credit.advantages is None or line.advantage is None or not len(credit.advantages):
        return line
    lists = {name: None if part is None else part.tolist() for name, part in credit._asdict().items()}
    return msgspec.structs.replace(line, advantage=float(credit.advantages.mean()), **lists)


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


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
            reasons.append(_NO_ROLLOUT)
        elif not there[number] and cfg.advantage != "opd":
            reasons.append("no_reward")
        elif cfg.keep == "mixed" and kinds[number] != "mixed":
            reasons.append("same_rewards" if kinds[number] != "few" else "few_rewards")
        elif passed < cfg.min_pass:
            reasons.append("too_hard")
        elif cfg.max_pass is not None and passed > cfg.max_pass:
            reasons.append("too_easy")
        elif cfg.overlong == "drop" and row["finish"] == "length":
            reasons.append("overlong")
        else:
            reasons.append(None)
    return reasons


def _metrics(
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
