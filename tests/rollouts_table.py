"""Rollouts artifacts for tests: a few prompts with answers, ids made up."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa

from postmill.io.commit import Staging
from postmill.io.manifest import Manifest, list_files
from postmill.io.rollouts import ROLLOUTS
from postmill.io.schemas import ROLLOUTS_V1
from postmill.io.table import TableWriter


def row_of(
    prompt: int, sample: int, output: str | None, *, num_tokens: int = 3, finish: str = "stop", **columns
) -> dict:
    """One rollout of two prompt tokens and `num_tokens` sampled ones; failed where `output` is None."""
    name = hashlib.blake2b(f"{prompt}:{sample}".encode(), digest_size=16).digest()
    group = hashlib.blake2b(f"{prompt}".encode(), digest_size=16).digest()
    length = 2 + (num_tokens if output is not None else 0)
    sampled = [{"start": 2, "end": length, "weights": 0, "turn": 0}] if output is not None else []
    return {
        "row_id": name,
        "source": 0,
        "line": prompt + 1,
        "input_ids": list(range(length)),
        "turns": [],
        "spans": [{"start": 2, "end": length, "weight": 1.0}] if output is not None else [],
        "length": length,
        "trained_tokens": length - 2,
        "weight_sum": float(length - 2),
        "pair_id": group,
        "extra": json.dumps(columns),
        "prompt_id": group,
        "sample": sample,
        "attempt": 0,
        "branch": 0,
        "prompt_length": 2,
        "sampled": sampled,
        "finish": "stop" if output is not None else "error",
        "seed": sample,
        "output": output,
        "prompt": json.dumps([{"role": "user", "content": "?"}]),
        "error": None if output is not None else "the engine died",
    }


def write_rollouts(path: Path, rows: list[dict]) -> Path:
    """A rollouts artifact."""
    with Staging(path) as staging:
        writer = TableWriter(staging.path / ROLLOUTS, ROLLOUTS_V1)
        writer.write(pa.RecordBatch.from_pylist(rows, schema=ROLLOUTS_V1))
        writer.close()
        manifest = Manifest(
            kind="rollouts",
            stage="rollout",
            stage_version=1,
            key="test",
            config={},
            files=list_files(staging.path),
            metrics={"sources": ["prompts.jsonl"]},
            digests={"tokenizer": "blake3:0"},
        )
        staging.commit(manifest, replace=False)
    return path
