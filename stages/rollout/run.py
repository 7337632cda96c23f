"""Rollout: the prompts of a batch, each answered several times; ids and log-probabilities as they were sampled.

Nothing is encoded again: a row is the prompt's ids followed by the sampled ones, and its spans cover what was sampled.
A sample that could not be made is a row with an error and no spans, never missing.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from postmill.io.digest import digest_bytes
from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.manifest import Artifact
from postmill.io.model_folder import tokenizer_digest
from postmill.io.pictures import patches_of
from postmill.io.rollouts import PROMPTS, ROLLOUTS
from postmill.io.schemas import PROMPTS_V1, ROLLOUTS_V1
from postmill.io.table import TableReader
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.rollout.config import Rollout
from postmill.stages.shared.base_model import all_stop_ids
from postmill.stages.shared.engine.ask import ask_all
from postmill.stages.shared.engine.local import LocalEngine
from postmill.stages.shared.engine.protocol import Constraint, Engine, Reply, Request, Sampling
from postmill.stages.shared.engine.text import Speaker
from postmill.stages.shared.engine.url import UrlEngine

_COLUMNS = ["row_id", "source", "line", "input_ids", "channel", "extra", "messages"]
_KEPT = ("tokenizer", "template")
_BATCH_ROWS = 4096
_JOURNAL = "replies.jsonl"


def run(cfg: Rollout, inputs: Inputs, out: Out) -> Result:
    """Make `rollouts.arrow`, a row a sample, those of a prompt together.

    Raises ArtifactError (65) for prompts that are none, (78) for another tokenizer; StageError (65) over --max-errors,
    (75) when stopped.
    """
    out.stop.graceful = True
    artifact = inputs["prompts"][0].artifact
    assert artifact is not None
    folders = [item.path for port in ("model", "policy") for item in inputs[port] if item.path is not None]
    _check_tokenizer(artifact, folders)
    prompts = _read_prompts(cfg, artifact)

    engine: Engine
    if cfg.endpoint.url:
        engine = UrlEngine(cfg.endpoint, concurrency=cfg.batch_size)
    else:
        engine = LocalEngine(folders, dtype=cfg.dtype, batch_size=cfg.batch_size, threads=out.threads)
    speaker = Speaker(folders)
    sampling = Sampling(
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_k=cfg.top_k,
        top_p=cfg.top_p,
        min_p=cfg.min_p,
        stop_ids=engine.about.stop_ids or frozenset(all_stop_ids(folders)) or speaker.eos_ids,
        constraint=_constraint(cfg, engine),
    )
    requests = [_request(cfg, prompt, sample) for prompt in prompts for sample in range(cfg.samples)]
    replies = ask_all(engine, requests, sampling, out=out, name=_JOURNAL, what="samples")
    _check_errors(cfg, replies)
    _write(cfg, prompts, replies, Ended(speaker, sampling.stop_ids), out)
    (out.work / _JOURNAL).unlink(missing_ok=True)
    if out.work.is_dir() and not any(out.work.iterdir()):
        out.work.rmdir()
    return Result(
        metrics=_metrics(cfg, artifact, engine, replies),
        digests={
            name: digest for name, digest in artifact.manifest.digests.items() if name in ("tokenizer", "template")
        }
        | {"weights": engine.loaded.digest},
        versions=engine.about.versions,
    )


class Ended(NamedTuple):
    """What answers say; those that end with one of `stop_ids` are whole."""

    speaker: Speaker
    stop_ids: frozenset[int]

    def stop_id(self, reply: Reply) -> int | None:
        """The token that only ended the answer."""
        return reply.ids[-1] if reply.finish == "stop" and reply.ids and reply.ids[-1] in self.stop_ids else None

    def text(self, reply: Reply) -> str:
        """Without the token that ended it."""
        return self.speaker.text(reply.ids, is_stopped=self.stop_id(reply) is not None)


def _constraint(cfg: Rollout, engine: Engine) -> Constraint | None:
    """What answers are held to. Raises ConfigError (2) for what no answer can be, or without the library."""
    if not cfg.regex and not cfg.json_schema:
        return None
    kind: Literal["regex", "json_schema"] = "regex" if cfg.regex else "json_schema"
    constraint = Constraint(kind=kind, source=cfg.regex or cfg.json_schema)
    if isinstance(engine, LocalEngine):
        fault = engine.constraint_fault(constraint)
        if fault:
            raise ConfigError(f"rollout: {fault}", USAGE)
    return constraint


def _check_tokenizer(prompts: Artifact, folders: list[Path]) -> None:
    wanted = prompts.manifest.digests.get("tokenizer")
    holders = [path for path in folders if (path / "tokenizer.json").is_file()]
    found = {tokenizer_digest(path) for path in holders}
    if wanted is not None and holders and wanted not in found:
        raise ArtifactError(
            f"{prompts.path}: its prompts were made with tokenizer {wanted[:23]}, {holders[-1]} has another; make them"
            " with this model",
            MISMATCH,
        )


def _read_prompts(cfg: Rollout, artifact: Artifact) -> list[dict[str, Any]]:
    """The prompts of this run, in order. Raises ArtifactError (65) if there are none, ConfigError (2) if too few."""
    rows: list[dict[str, Any]] = []
    for batch in TableReader(artifact.file(PROMPTS), PROMPTS_V1):
        rows += batch.select(_COLUMNS).to_pylist()
        if patches_of(batch).any():
            raise ConfigError(f"{artifact.path}: prompts with pictures cannot be asked yet; leave them out", USAGE)
    if not rows:
        raise ArtifactError(f"{artifact.path}: no prompts", BAD_DATA)
    if cfg.prompts_count > len(rows):
        raise ConfigError(
            f"--prompts-count {cfg.prompts_count}: {artifact.path} has {len(rows)} prompts, and one that is asked twice"
            " gets the same answers; take fewer, or add prompts",
            USAGE,
        )
    if not cfg.prompts_count:
        return rows[cfg.prompts_from :]
    return [rows[(cfg.prompts_from + number) % len(rows)] for number in range(cfg.prompts_count)]


def _digest16(*parts: object) -> bytes:
    return bytes.fromhex(digest_bytes(":".join(map(str, parts)).encode())[7:39])


def _key(prompt: dict[str, Any], sample: int) -> str:
    return f"{prompt['row_id'].hex()}-{sample:05d}"


def seed_of(cfg: Rollout, prompt: dict[str, Any], sample: int) -> int:
    """A seed of the sample's own: of the run's seed, the prompt and the number of the sample."""
    return int.from_bytes(_digest16(cfg.seed, prompt["row_id"].hex(), sample)[:8], "big") >> 1


def _request(cfg: Rollout, prompt: dict[str, Any], sample: int) -> Request:
    return Request(key=_key(prompt, sample), prompt_ids=prompt["input_ids"], seed=seed_of(cfg, prompt, sample))


def _check_errors(cfg: Rollout, replies: dict[str, Reply]) -> None:
    failed = [reply for reply in replies.values() if reply.error is not None]
    if len(failed) > cfg.max_errors * len(replies):
        raise StageError(
            f"{len(failed)} of {len(replies)} samples could not be made, more than --max-errors {cfg.max_errors:.2%};"
            f" the first is {failed[0].key}: {failed[0].error}",
            BAD_DATA,
        )


def _write(cfg: Rollout, prompts: list[dict[str, Any]], replies: dict[str, Reply], ended: Ended, out: Out) -> None:
    writer = out.table(ROLLOUTS, ROLLOUTS_V1)
    pending: list[dict[str, Any]] = []
    for row in _rows(cfg, prompts, replies, ended):
        pending.append(row)
        if len(pending) == _BATCH_ROWS:
            writer.write(pa.RecordBatch.from_pylist(pending, schema=ROLLOUTS_V1))
            pending = []
    if pending:
        writer.write(pa.RecordBatch.from_pylist(pending, schema=ROLLOUTS_V1))
    writer.close()
    out.ledger.keep(len(prompts) * cfg.samples)


def _rows(
    cfg: Rollout, prompts: list[dict[str, Any]], replies: dict[str, Reply], ended: Ended
) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        for sample in range(cfg.samples):
            yield _row(cfg, prompt, sample, replies[_key(prompt, sample)], ended)


def _row(cfg: Rollout, prompt: dict[str, Any], sample: int, reply: Reply, ended: Ended) -> dict[str, Any]:
    """One sample as a row of ROLLOUTS_V1."""
    start, count = len(prompt["input_ids"]), len(reply.ids)
    end = start + count
    text = ended.text(reply) if reply.error is None else None
    answer = [{"role": "assistant", "content": text}] if text is not None else []
    return {
        "row_id": _digest16(prompt["row_id"].hex(), sample, 0, 0),
        "source": prompt["source"],
        "line": prompt["line"],
        "input_ids": prompt["input_ids"] + reply.ids,
        "turns": [],
        "spans": [{"start": start, "end": end, "weight": 1.0}] if count else [],
        "length": end,
        "trained_tokens": count,
        "weight_sum": float(count),
        "channel": prompt["channel"],
        "pair_id": prompt["row_id"],
        "extra": prompt["extra"],
        "prompt_id": prompt["row_id"],
        "sample": sample,
        "attempt": 0,
        "branch": 0,
        "prompt_length": start,
        "sampled": [{"start": start, "end": end, "weights": 0, "turn": 0}] if count else [],
        "logp": reply.logp if reply.error is None else None,
        "finish": reply.finish,
        "stop_id": ended.stop_id(reply),
        "seed": seed_of(cfg, prompt, sample),
        "output": text,
        "prompt": prompt["messages"],
        "transcript": msgspec.json.encode(answer).decode(),
        "error": reply.error,
    }


def _metrics(cfg: Rollout, prompts: Artifact, engine: Engine, replies: dict[str, Reply]) -> dict[str, Any]:
    lengths = np.array([len(reply.ids) for reply in replies.values() if reply.error is None])
    logps = [value for reply in replies.values() for value in reply.logp]
    finishes = [reply.finish for reply in replies.values()]
    return {
        "sources": prompts.manifest.metrics.get("sources", []),
        "samples": len(replies),
        "weights": [engine.loaded.digest],
        "proof": engine.loaded.proof,
        "engine": engine.about.kind,
        "logp_kind": "tempered",
        "temperature": cfg.temperature,
        "truncated": bool(cfg.top_k or cfg.top_p < 1 or cfg.min_p or cfg.regex or cfg.json_schema),
        "sampled_tokens": int(lengths.sum()) if len(lengths) else 0,
        "mean_length": float(lengths.mean()) if len(lengths) else None,
        "mean_logp": float(np.mean(logps)) if logps else None,
        "finish": {name: finishes.count(name) for name in sorted(set(finishes))},
    }
