"""Samples as rows of ROLLOUTS_V1, and what the manifest says of all of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from postmill.io.digest import digest_bytes
from postmill.io.media import MEDIA
from postmill.io.rollouts import ROLLOUTS
from postmill.io.schemas import ROLLOUTS_V1, with_media
from postmill.stages.protocol import Out
from postmill.stages.shared.engine.protocol import Reply
from postmill.stages.shared.engine.text import Speaker

_BATCH_ROWS = 4096
# rows may bring pictures' bytes along, a megabyte each
_PICTURE_ROWS = 64


class Branch(msgspec.Struct, kw_only=True):
    """Tokens that were only ever added to: a row."""

    start: int
    """Tokens of its prompt."""
    ids: list[int]
    runs: list[tuple[int, int, int]] = []
    """First token, end and turn of each answer."""
    logp: list[float] = []
    rewards: list[tuple[int, float]] = []
    """What the environment gave, and the token before which it did."""
    finish: str = "error"
    stop_id: int | None = None
    output: str | None = None


class Sample(msgspec.Struct, kw_only=True):
    """One sample of a prompt: a branch, or several where its past was rewritten."""

    prompt: dict[str, Any]
    """Its row of PROMPTS_V1."""
    number: int
    seed: int
    messages: str | None
    """The conversation that was answered, as JSON."""
    branches: list[Branch]
    transcript: list[dict[str, Any]]
    error: str | None = None
    columns: dict[str, Any] = {}
    """Added to the prompt's other columns, or in place of them."""


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


def digest16(*parts: object) -> bytes:
    """16 bytes that name these parts."""
    return bytes.fromhex(digest_bytes(":".join(map(str, parts)).encode())[7:39])


def write_samples(samples: Sequence[Sample], out: Out) -> int:
    """`rollouts.arrow`; returns the number of its rows."""
    has_media = any(MEDIA in sample.prompt for sample in samples)
    schema = with_media(ROLLOUTS_V1) if has_media else ROLLOUTS_V1
    writer = out.table(ROLLOUTS, schema)
    pending: list[dict[str, Any]] = []
    count = 0
    for sample in samples:
        pending += [_row(sample, number) for number in range(len(sample.branches))]
        if len(pending) >= (_PICTURE_ROWS if has_media else _BATCH_ROWS):
            count += len(pending)
            writer.write(pa.RecordBatch.from_pylist(pending, schema=schema))
            pending = []
    if pending:
        writer.write(pa.RecordBatch.from_pylist(pending, schema=schema))
    writer.close()
    out.ledger.keep(count + len(pending))
    return count + len(pending)


def _row(sample: Sample, number: int) -> dict[str, Any]:
    prompt, branch = sample.prompt, sample.branches[number]
    is_good = sample.error is None
    runs = branch.runs if is_good else []
    trained = sum(end - start for start, end, _ in runs)
    return {
        "row_id": digest16(prompt["row_id"].hex(), sample.number, 0, number),
        "source": prompt["source"],
        "line": prompt["line"],
        "input_ids": branch.ids,
        "turns": [],
        "spans": [{"start": start, "end": end, "weight": 1.0} for start, end, _ in runs],
        "length": len(branch.ids),
        "trained_tokens": trained,
        "weight_sum": float(trained),
        "channel": prompt["channel"],
        "pair_id": prompt["row_id"],
        "extra": _extra(prompt["extra"], sample.columns),
        "prompt_id": prompt["row_id"],
        "sample": sample.number,
        "attempt": 0,
        "branch": number,
        "prompt_length": branch.start,
        "sampled": [{"start": start, "end": end, "weights": 0, "turn": turn} for start, end, turn in runs],
        "logp": branch.logp if is_good else None,
        "finish": branch.finish if is_good else "error",
        "stop_id": branch.stop_id,
        "seed": sample.seed,
        "output": branch.output if is_good else None,
        "prompt": sample.messages,
        "transcript": msgspec.json.encode(sample.transcript).decode(),
        "step_rewards": [{"at": at, "value": value} for at, value in branch.rewards] or None,
        "error": sample.error,
    } | ({MEDIA: prompt[MEDIA]} if MEDIA in prompt else {})


def _extra(extra: str | None, columns: dict[str, Any]) -> str | None:
    """A prompt's other columns as JSON, with more of them."""
    if not columns:
        return extra
    return msgspec.json.encode(msgspec.json.decode(extra or "{}") | columns, order="deterministic").decode()


def metrics_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """Counts and means over samples that have no error; finishes are those of the last branches."""
    good = [sample for sample in samples if sample.error is None]
    lengths = [sum(end - start for b in sample.branches for start, end, _ in b.runs) for sample in good]
    logps = [value for sample in good for branch in sample.branches for value in branch.logp]
    finishes = ["error" if sample.error is not None else sample.branches[-1].finish for sample in samples]
    return {
        "samples": len(samples),
        "sampled_tokens": sum(lengths),
        "mean_length": float(np.mean(lengths)) if lengths else None,
        "mean_logp": float(np.mean(logps)) if logps else None,
        "finish": {name: finishes.count(name) for name in sorted(set(finishes))},
    }
