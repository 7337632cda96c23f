"""Score: rows through a model without gradients, part by part, so that a run that was stopped goes on where it was.

Rows of a part are sorted by length and laid into bins, which are computed as `train` computes its own; what is written
lies in the order of the rows. Each finished part is a file beside the output until all are there.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from postmill.io.arrays import from_numpy, list_of, to_numpy
from postmill.io.errors import FAILED, MISMATCH, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.manifest import Artifact
from postmill.io.packed import PackedReader, TokenRows, token_tables
from postmill.io.schemas import SCORES_V1
from postmill.io.scores import SCORES
from postmill.io.table import TableReader, TableWriter
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.score.config import Score
from postmill.stages.score.onto import Onto
from postmill.stages.score.reading import Reading
from postmill.stages.shared import attention, hf
from postmill.stages.shared.answer_tokens import answers_head
from postmill.stages.shared.apart import settle
from postmill.stages.shared.asked import Ask
from postmill.stages.shared.batch import collate
from postmill.stages.shared.forward import Forward
from postmill.stages.shared.heads import Head
from postmill.stages.shared.saved_head import find_head
from postmill.stages.shared.stats import Stat

PART_ROWS = 4096
_COLUMNS: tuple[Stat, ...] = ("logp", "entropy", "collision")
TOP = ("top_ids", "top_logp")


def run(cfg: Score, inputs: Inputs, out: Out) -> Result:
    """Make scores. Raises ArtifactError (65, 66, 78), StageError (1; 75 when stopped, with all finished parts kept)."""
    out.stop.graceful = True
    source, rows = _rows(inputs["rows"][0])
    kind = _head_kind(cfg, inputs)
    onto = _onto(cfg, inputs, rows)
    reading = Reading(cfg, inputs, rows, kind)
    folder = out.checkpoints / out.key.rpartition(":")[2][:16]
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(rows), PART_ROWS)
    paths = [folder / f"part-{start // PART_ROWS:06d}.arrow" for start in starts]
    forward: Forward | None = None
    ready = min(len(rows), PART_ROWS * sum(path.is_file() for path in paths))
    meter = Meter(len(rows), ready)
    for start, path in zip(starts, paths, strict=True):
        if out.stop.requested:
            raise out.stop.stopped(f"{sum(p.is_file() for p in paths)} of {len(paths)} parts are done")
        if path.is_file():
            continue
        forward = forward or _load(cfg, inputs, out)
        part = np.arange(start, min(start + PART_ROWS, len(rows)))
        if forward.head.kind == "lm":
            _write_part(path, _score(cfg, forward, reading, part))
        elif forward.head.kind == "token":
            _write_part(path, _token_values(cfg, forward, rows, part))
        else:
            _write_part(path, _values(cfg, forward, rows, part))
        Progress.say("score", meter.of(min(start + PART_ROWS, len(rows)), "rows"))
    table = out.table(SCORES, SCORES_V1)
    total, count = 0.0, 0
    for path in paths:
        for batch in TableReader(path, SCORES_V1):
            logp = to_numpy(batch.column("logp").values)
            total, count = total + float(logp.sum(dtype=np.float64)), count + len(logp)
            if onto is None:
                table.write(batch)
    for written in () if onto is None else onto.write(paths):
        table.write(_batch(*written))
    table.close()
    if onto is not None:
        Progress.show(f"score: {onto.metrics()['aligned_text']:.1%} of the trained text is the same in both")
    out.after_commit = lambda: shutil.rmtree(out.checkpoints, ignore_errors=True)
    return Result(
        metrics={
            "head": kind,
            "rows": len(rows),
            "tokens": count,
            "mean_logp": total / count if count else None,
            **({} if onto is None else onto.metrics()),
        },
        digests=dict((source if onto is None else onto.source).manifest.digests),
        versions=hf.need("torch", "transformers", remedy="pip install 'postmill[train]'"),
    )


def _head_kind(cfg: Score, inputs: Inputs) -> str:
    paths = [item.path for port in ("model", "adapter") for item in inputs[port] if item.path is not None]
    if cfg.answers:
        return "answers"
    return find_head(paths[0], paths[1] if len(paths) > 1 else None).kind if cfg.head == "auto" else cfg.head


def _onto(cfg: Score, inputs: Inputs, rows: TokenRows) -> Onto | None:
    if not inputs["onto"]:
        if inputs["onto_tokenizer"]:
            raise ConfigError("--onto-tokenizer: of which rows? give --onto too, or leave it out", USAGE)
        return None
    artifact, others = _rows(inputs["onto"][0])
    return Onto(cfg, inputs, rows, others, artifact)


def _rows(given: Input) -> tuple[Artifact, TokenRows]:
    assert given.artifact is not None
    if given.kind == "packed":
        assert given.path is not None
        return given.artifact, PackedReader(given.path).token_rows
    return given.artifact, TokenRows(token_tables(given.artifact))


def _load(cfg: Score, inputs: Inputs, out: Out) -> Forward:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(min(out.threads, torch.get_num_threads()))
    dtype = torch.float32 if cfg.dtype != "bfloat16" else torch.bfloat16
    if cfg.dtype == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        dtype = torch.bfloat16
    path = inputs["model"][0].path
    assert path is not None
    kernel = attention.choose(cfg.attention, device, dtype)
    adapters = {item.path: 1.0 for item in inputs["adapter"] if item.path is not None}
    head = _head(cfg, path, next(iter(adapters), None))
    if cfg.where == "all" and hf.is_encoder_decoder(path):
        raise ConfigError("--where all: an encoder-decoder says nothing of its prompt's tokens; leave it out", USAGE)
    net = hf.load_model(path, str(dtype).removeprefix("torch."), attention=kernel, head=head)
    if adapters:
        net = hf.base_of(hf.add_adapters(net, adapters))
    forward = Forward(net.to(device), compute_dtype=dtype, backend=cfg.loss_kernel, head=head).eval()
    if forward.prompt_edits is not None and cfg.where == "all":
        raise ConfigError(
            "--where all: this adapter edits prompts, which end before scored tokens; leave it out", USAGE
        )
    settle(forward, "score", device)
    return forward


def _head(cfg: Score, model: Path, adapter: Path | None) -> Head:
    """What is asked for. Raises ArtifactError (78) for classes of a model that has no classifier."""
    if cfg.answers:
        return answers_head(cfg.answers)
    head = find_head(model, adapter)
    kind = head.kind if cfg.head == "auto" else cfg.head
    if kind == "sequence" and head.kind != kind:
        raise ArtifactError(
            f"{adapter or model}: has no classifier; train one (--objective rm), or ask for --head lm or pool", MISMATCH
        )
    if kind == "token" and (head.kind != kind or head.outputs != 1):
        raise ArtifactError(
            f"{adapter or model}: is no critic with one number for each token; train one (--objective value), or name"
            " another --head",
            MISMATCH,
        )
    pooling = head.pooling if cfg.pooling == "auto" else cfg.pooling
    answers = head.answers if kind == "answers" else None
    return Head(kind=kind, outputs=head.outputs, pooling=pooling, answers=answers)


def _bins(lengths: NDArray[np.int64], bin_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Places of rows of nearly equal length, at most `bin_tokens` tokens together, or one."""
    order = np.argsort(lengths, kind="stable")
    first, total = 0, 0
    for at, place in enumerate(order.tolist()):
        if at > first and total + lengths[place] > bin_tokens:
            yield order[first:at]
            first, total = at, 0
        total += int(lengths[place])
    yield order[first:]


def _score(cfg: Score, forward: Forward, reading: Reading, part: NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of `part` as SCORES_V1. With another prompt it lies where the answer is in the row."""
    wanted = [name for name in _COLUMNS if name == "logp" or getattr(cfg, name)]
    columns = [*wanted, *(TOP if cfg.top_k else ())]
    scores: dict[str, list[NDArray[np.float32]]] = {name: [np.empty(0, np.float32)] * len(part) for name in columns}
    first = np.zeros(len(part), np.int32)
    device = next(forward.parameters()).device
    for places in _bins(reading.lengths(part), cfg.bin_tokens):
        places = places[reading.readable(part[places])]  # noqa: PLW2901  the others have no answer to score
        if not len(places):
            continue
        laid, shifts = reading.lay(part[places])
        spans = [_span(cfg, laid.weights[a:b]) for a, b in zip(laid.cu_seqlens, laid.cu_seqlens[1:], strict=False)]
        scored = np.zeros(len(laid.weights), np.float32)
        for border, (a, b) in zip(laid.cu_seqlens.tolist(), spans, strict=False):
            scored[border + a : border + b] = 1.0
        # what is scored is what a batch calls its mask, and that is made of weights
        batch = reading.with_pictures(collate([laid._replace(weights=scored)]), part[places]).to(device)
        with torch.no_grad():
            outputs = forward(batch, Ask(frozenset(wanted), temperature=cfg.temperature, num_top=cfg.top_k))
        for name in columns:
            values = getattr(outputs, f"{name}_TK" if name in TOP else f"{name}_T").float().cpu().numpy()
            where = zip(laid.cu_seqlens.tolist(), places.tolist(), spans, shifts.tolist(), strict=False)
            for border, place, (a, b), shift in where:
                # what is said of a token stands at the token before it
                scores[name][place] = values[border + a - 1 : border + b - 1].ravel() if b > a else values[:0].ravel()
                first[place] = a - shift if b > a else 0
        if not all(np.isfinite(scores[name][place]).all() for name in wanted for place in places.tolist()):
            raise StageError(f"rows {part[places].tolist()[:4]}: log-probs are not finite; check the model", FAILED)
    return _batch(reading.rows.columns(part, ["row_id"])["row_id"], first, scores)


def _values(cfg: Score, forward: Forward, rows: TokenRows, part: NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of `part` as SCORES_V1, of a head that says something of the whole row."""
    by_row: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(part)
    lengths = rows.columns(part, ["length"])["length"].astype(np.int64)
    device = next(forward.parameters()).device
    for places in _bins(lengths, cfg.bin_tokens):
        with torch.no_grad():
            outputs = forward(collate([rows.lay(part[places])]).to(device), Ask())
        values = outputs.values_NC
        if outputs.pooled_RH is not None:
            values = normalize(outputs.pooled_RH, dim=-1) if cfg.normalize else outputs.pooled_RH
        assert values is not None
        for place, vector in zip(places.tolist(), values.float().cpu().numpy(), strict=True):
            by_row[place] = vector
        if not bool(torch.isfinite(values).all()):
            raise StageError(f"rows {part[places].tolist()[:4]}: numbers are not finite; check the model", FAILED)
    empty = [np.empty(0, np.float32)] * len(part)
    row_id = rows.columns(part, ["row_id"])["row_id"]
    return _batch(row_id, np.zeros(len(part), np.int32), {"logp": empty, "values": by_row})


def _token_values(cfg: Score, forward: Forward, rows: TokenRows, part: NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of `part` as SCORES_V1, with a critic's number before each token of their spans."""
    by_row: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(part)
    first = np.zeros(len(part), np.int32)
    lengths = rows.columns(part, ["length"])["length"].astype(np.int64)
    device = next(forward.parameters()).device
    for places in _bins(lengths, cfg.bin_tokens):
        laid = rows.lay(part[places])
        spans = [_span(cfg, laid.weights[a:b]) for a, b in zip(laid.cu_seqlens, laid.cu_seqlens[1:], strict=False)]
        # what is said of a token stands at the token before it
        at = [np.arange(border + a - 1, border + b - 1) for border, (a, b) in zip(laid.cu_seqlens, spans, strict=False)]
        points_N = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *at])).to(device)
        with torch.no_grad():
            values = forward(collate([laid]).to(device), Ask(points_N=points_N)).values_NC
        assert values is not None
        if not bool(torch.isfinite(values).all()):
            raise StageError(f"rows {part[places].tolist()[:4]}: numbers are not finite; check the model", FAILED)
        pieces = np.split(values[:, 0].float().cpu().numpy(), np.cumsum([len(piece) for piece in at])[:-1])
        for place, (a, _), piece in zip(places.tolist(), spans, pieces, strict=True):
            by_row[place], first[place] = piece, a
    empty = [np.empty(0, np.float32)] * len(part)
    return _batch(rows.columns(part, ["row_id"])["row_id"], first, {"logp": empty, "values": by_row})


def _span(cfg: Score, weights: NDArray[np.float32]) -> tuple[int, int]:
    """First scored token of a row, and the end; the first token of a row has nothing before it."""
    if cfg.where == "all":
        return (1, len(weights)) if len(weights) > 1 else (0, 0)
    at = np.flatnonzero(weights)
    return (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)


def _batch(
    row_id: NDArray[np.void], first: NDArray[np.int32], scores: dict[str, list[NDArray[np.float32]]]
) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        "row_id": from_numpy(row_id, SCORES_V1.field("row_id").type),
        "start": from_numpy(first, pa.int32()),
    }
    for name in (*_COLUMNS, "values", *TOP):
        kind = SCORES_V1.field(name).type
        if name not in scores:
            columns[name] = pa.nulls(len(first), kind)
            continue
        offsets = np.cumsum([0, *map(len, scores[name])], dtype=np.int32)
        values = np.concatenate(scores[name])
        item = kind.value_type
        columns[name] = list_of(offsets, from_numpy(values.astype(item.to_pandas_dtype()), item), kind)
    return pa.RecordBatch.from_arrays([columns[name] for name in SCORES_V1.names], schema=SCORES_V1)


def _write_part(path: Path, batch: pa.RecordBatch) -> None:
    """A file that is whole or not there."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    writer = TableWriter(temporary, SCORES_V1)
    writer.write(batch)
    writer.close()
    temporary.rename(path)
