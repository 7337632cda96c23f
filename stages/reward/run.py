"""Reward: run the functions in worker processes, sum their scores, compare within groups, write what was asked for.

No engine is touched: rewards are a function of stored rollouts, so another reward is another run of this stage only,
and scores of functions that did not change are copied from an earlier run.
"""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError
from postmill.io.manifest import Artifact
from postmill.io.rollouts import read_rollouts
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.reward import emit
from postmill.stages.reward.answers import ask_functions, check_failures, copied_answers
from postmill.stages.reward.by_token import check_ports, read_samples
from postmill.stages.reward.config import Reward
from postmill.stages.reward.judge import credits_of, judge, with_credit
from postmill.stages.reward.rubric import forget_replies
from postmill.stages.reward.scored import scored
from postmill.stages.reward.summary import summarize
from postmill.stages.shared.sandbox.run import require

_COLUMNS = ["row_id", "prompt_id", "source", "line", "length", "sample", "attempt", "branch", "finish", "sampled"]
_TEXTS = ["output", "prompt", "transcript", "extra", "step_rewards", "error"]


def run(cfg: Reward, inputs: Inputs, out: Out) -> Result:
    """Make rewards, or tokens of the best rows.

    Raises ConfigError (2), StageError (1, 65 when too many scores of a function failed), ArtifactError as readers do.
    """
    scores = [msgspec.structs.replace(item, name=item.port.removeprefix("scores.")) for item in inputs["scores"]]
    functions = [*inputs["functions"], *inputs["rubrics"], *scores]
    check_ports(cfg.advantage, cfg.by_token, inputs)
    _check_tools(cfg, functions)
    if not functions and cfg.advantage != "opd":
        raise ConfigError(
            "reward: nothing says what is good; pass --func, --rubric, or --scores of a reward model", USAGE
        )
    weights = _weights(cfg, functions)
    artifacts = [item.artifact for item in inputs["rollouts"] if item.artifact is not None]
    every = read_rollouts(artifacts, _COLUMNS + _TEXTS)
    if not every:
        raise ArtifactError(f"{artifacts[0].path}: no rollouts to score", BAD_DATA)
    ends = _last_branches(every)
    rows = [every[number] | _of_sample(every, number) for number in ends.values()]
    old = inputs["reuse"][0].artifact if inputs["reuse"] else None
    known = copied_answers(cfg, old, functions, every) | scored(scores, every)
    copied = {name: [column[number] for number in ends.values()] for name, column in known.items()}
    answers = ask_functions(cfg, functions, rows, copied, out)
    for function, column in zip(functions, answers, strict=True):
        check_failures(cfg, function.name, column)
    tokens = read_samples(inputs, artifacts, every, _logps(artifacts)) if _needs_tokens(cfg, inputs) else []
    judges = list(zip(functions, weights, strict=True))
    table = judge(cfg, rows, answers, judges, tokens)
    kind = "rewards" if cfg.emit == "rewards" else cfg.emit
    if cfg.emit == "rewards":
        of_sample = dict(zip(ends, table, strict=True))
        credits = credits_of(cfg, tokens, table, judges)
        emit.write_rewards(
            [
                with_credit(of_sample[_sample_of(row)], row["row_id"], credits.get(number))
                for number, row in enumerate(every)
            ],
            out,
        )
    else:
        emit.write_tokens(cfg, dict(zip(ends.values(), table, strict=True)), every, artifacts, out)
    forget_replies(inputs["rubrics"], cfg.judge, out)
    metrics = summarize(table, rows, functions, weights, answers, threshold=cfg.threshold) | {"emit": kind}
    sources = [name for artifact in artifacts for name in artifact.manifest.metrics.get("sources", [])]
    return Result(metrics=metrics | {"sources": sources}, digests=dict(artifacts[0].manifest.digests))


def _check_tools(cfg: Reward, functions: list[Input]) -> None:
    """Raise ConfigError: (2) for a rubric without a server, (77) for code without a sandbox."""
    if any(function.port == "rubrics" for function in functions) != bool(cfg.endpoint.url):
        raise ConfigError("--rubric needs --url, the server whose model grades by it, and --url needs --rubric", USAGE)
    if any(function.name == "code" and function.path is None for function in functions):
        require(cfg.code.sandbox)


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


def _needs_tokens(cfg: Reward, inputs: Inputs) -> bool:
    return cfg.emit == "rewards" and (cfg.advantage == "gae" or bool(inputs["ref"] or inputs["teacher"]))


def _logps(artifacts: list[Artifact]) -> list[Any]:
    """What the sampler said of its tokens, by row."""
    return [row["logp"] for row in read_rollouts(artifacts, ["logp"])]
