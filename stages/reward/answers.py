"""What the functions say of each rollout: asked in worker processes, or copied from earlier rewards."""

from collections.abc import Mapping
from typing import Any

import msgspec

from postmill.io.digest import digest_bytes
from postmill.io.errors import BAD_DATA, MISMATCH, ArtifactError, StageError
from postmill.io.manifest import Artifact
from postmill.io.rollouts import REWARDS
from postmill.io.schemas import REWARDS_V1
from postmill.io.table import TableReader
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Input, Out
from postmill.stages.reward.config import Reward
from postmill.stages.reward.pool import Pool
from postmill.stages.reward.row import Answer, Row
from postmill.stages.reward.rubric import UrlJudge

NO_ROLLOUT = "rollout_failed"
"""The reason of an answer that no function was asked for."""


def record_of(row: Mapping[str, Any], seed: int) -> Row:
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


def ask_functions(
    cfg: Reward, functions: list[Input], rows: list[dict[str, Any]], copied: dict[str, list[Answer]], out: Out
) -> list[list[Answer]]:
    """Each function's answers, in the order of the rows. A rollout that failed is asked about by no function."""
    alive = [number for number, row in enumerate(rows) if row["error"] is None]
    records = [record_of(rows[number], cfg.seed) for number in alive]
    options = {
        "solution": cfg.solution,
        "max_answer_tokens": cfg.max_answer_tokens,
        "soft_tokens": cfg.soft_tokens,
        "time_limit_s": cfg.time_limit_s,
        "code": msgspec.to_builtins(cfg.code),
    }
    columns: list[list[Answer]] = []
    graded = _graded(cfg, [function for function in functions if function.name not in copied], records, out)
    fresh = [function for function in functions if function.name not in copied and function.name not in graded]
    num_workers = min(out.threads, max(1, len(records)))
    pool = Pool(num_workers if fresh else 0, time_limit_s=cfg.time_limit_s, memory_mb=cfg.memory_mb)
    with pool:
        for function in functions:
            if function.name in copied:
                columns.append(copied[function.name])
                continue
            column = [Answer(reason=NO_ROLLOUT)] * len(rows)
            columns.append(column)
            if function.name in graded:
                for number, answer in zip(alive, graded[function.name], strict=True):
                    column[number] = answer
                continue
            meter = Meter(len(records))
            reference = f"{function.path}:{function.name.rpartition(':')[2]}" if function.path else function.name
            for done, (number, answer) in enumerate(pool.run(reference, options, records), 1):
                column[alive[number]] = _settle(cfg, answer)
                Progress.say("reward", f"{function.name}: {meter.of(done, 'rows')}")
    return columns


def _graded(cfg: Reward, functions: list[Input], records: list[Row], out: Out) -> dict[str, list[Answer]]:
    """Grades of all rows that have a rollout, by the name of the rubric."""
    rubrics = [function for function in functions if function.port == "rubrics"]
    if not rubrics:
        return {}
    judge = UrlJudge(cfg.endpoint, cfg.judge, out)
    found = {rubric.name: judge.grade(rubric, records, cfg.solution) for rubric in rubrics}
    judge.say_cost()
    return found


def _settle(cfg: Reward, answer: Answer) -> Answer:
    """An answer with `on_raise` applied: the reason stays, so that it is counted."""
    if answer.reason == "raised" and cfg.on_raise == "zero":
        return Answer(score=0.0, reason=answer.reason, detail=answer.detail)
    return answer


def copied_answers(
    cfg: Reward, old: Artifact | None, functions: list[Input], rows: list[dict[str, Any]]
) -> dict[str, list[Answer]]:
    """Answers of functions that have not changed, from earlier rewards. Raises ArtifactError (78) for other rows."""
    if old is None:
        return {}
    now = msgspec.to_builtins(cfg)
    ports = {"functions"} | ({"rubrics"} if _same(old.manifest.config, now, "judge", "endpoint") else set())
    known = {entry.digest for entry in old.manifest.inputs if entry.port in ports}
    if not _same(old.manifest.config, now, "code"):
        functions = [function for function in functions if function.name != "code"]
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


def _same(old: Mapping[str, Any], now: Mapping[str, Any], *names: str) -> bool:
    """Whether options of functions are what they were."""
    return all(old.get(name) == now[name] for name in names)


def check_failures(cfg: Reward, name: str, column: list[Answer]) -> None:
    """Raise StageError (65) if a function failed on more rows than allowed."""
    asked = [answer for answer in column if answer.reason != NO_ROLLOUT]
    failed = [answer for answer in asked if answer.reason and answer.score is None]
    if len(failed) > cfg.max_failed * len(asked):
        first = failed[0]
        raise StageError(
            f"--func {name}: failed on {len(failed)} of {len(asked)} rows, more than --max-failed {cfg.max_failed:.2%};"
            f" the first: {first.reason} {first.detail}".rstrip(),
            BAD_DATA,
        )
