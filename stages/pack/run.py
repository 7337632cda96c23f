"""Pack: read how long the rows are, plan the bins, count what each bin trains on, write the plan, prove it.

Tokens are never moved: a plan names rows by ordinal. Only a stream is copied, into `tokens/` inside the artifact, since
it cannot be read twice, and so are the pieces into which `wrapped` cuts rows; lengths are read as a stream passes, so
that at its end only the plan is left to make. Two passes over the token tables, the second over a few narrow columns;
memory is about 16 bytes a row, whatever the rows hold.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.arrays import from_numpy, list_of, to_numpy
from postmill.io.errors import BAD_DATA, INTERNAL, MISMATCH, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.ledger import Ledger
from postmill.io.packed import BINS, TOKENS, token_tables
from postmill.io.rewards import RewardsReader
from postmill.io.schemas import BINS_V1, TOKENS_V1, with_media
from postmill.io.scores import ScoresReader
from postmill.io.table import StreamReader, TableReader
from postmill.io.upstream import inside, keep_trailer
from postmill.stages.pack.config import Pack
from postmill.stages.pack.survey import (
    DEAD,
    LONG,
    UNTRAINED,
    Survey,
    Surveyor,
    Table,
    batches,
    group_starts,
    ledger_lines,
    place_of,
    runs_that_fit,
)
from postmill.stages.pack.wrapped import fill, sources_of, wrap
from postmill.stages.protocol import Input, Inputs, Out, Result

_BINS_A_BATCH = 16384


class Bins(NamedTuple):
    """The plan in the order it is written: bin i holds `rows[starts[i]:starts[i + 1]]`."""

    starts: NDArray[np.int64]
    rows: NDArray[np.uint32]
    """Ordinals in the token tables."""
    trained_tokens: NDArray[np.int64]
    weight_sum: NDArray[np.float64]


def run(cfg: Pack, inputs: Inputs, out: Out) -> Result:
    """Make `bins.arrow`. Raises StageError (65) for rows that do not fit, ArtifactError as the readers do."""
    more: dict[str, Any] = {}
    _check_order(cfg, inputs)
    source, digests = _open_tokens(inputs["tokens"])
    if cfg.strategy == "wrapped":
        tables, whole, survey, more = wrap(source, inputs, cfg.row_tokens, out)
        _check_trained(whole)
        starts, rows = fill(survey.lengths, cfg.row_tokens), np.arange(len(survey.lengths), dtype=np.uint32)
        bins = _count(tables, survey, starts, rows, Ledger(None))
    else:
        tables, survey = _receive(source, out) if isinstance(source, StreamReader) else (source, _survey(source))
        _leave_out_dead(survey, inputs)
        _check_trained(survey)
        starts, rows = _plan(cfg, survey, tables, _nats(inputs, tables))
        bins = _count(tables, survey, starts, rows, out.ledger)
    if isinstance(source, StreamReader) and source.trailer is not None:
        digests = dict(source.trailer.manifest.digests)
    _write(cfg, bins, survey, out)
    _prove(cfg, survey, out)
    more["sources"] = [name for table in tables for name in table.sources]
    return Result(metrics=_metrics(cfg, bins, survey) | more, digests=digests)


def _open_tokens(inputs: list[Input]) -> tuple[StreamReader | list[Table], dict[str, str]]:
    """The stream, or the token tables and the digests (tokenizer, template) that all of them share."""
    streams = [item.stream for item in inputs if item.stream is not None]
    if streams and len(inputs) > 1:
        raise ConfigError("pack: a stream together with artifacts; write it to an artifact first", USAGE)
    if streams:
        return streams[0], {}
    artifacts = [item.artifact for item in inputs if item.artifact is not None]
    digests: dict[str, str] = {}
    for artifact in artifacts:
        for name, digest in artifact.manifest.digests.items():
            if digests.setdefault(name, digest) != digest:
                raise ArtifactError(
                    f"{artifact.path}: {name} is {digest}, {artifacts[0].path} has {digests[name]}; rows packed"
                    " together need one tokenizer and template: run tokenize again",
                    MISMATCH,
                )
    tables: list[Table] = []
    first_source = 0
    for artifact in artifacts:
        sources = sources_of(artifact.manifest)
        tables += [Table(reader, sources, first_source) for reader in token_tables(artifact)]
        first_source += len(sources)
    return tables, digests


def _survey(tables: list[Table]) -> Survey:
    surveyor = Surveyor()
    for _, batch in batches(tables):
        surveyor.add(batch)
    return surveyor.finish(tables)


def _leave_out_dead(survey: Survey, inputs: Inputs) -> None:
    """Drop samples that their rewards give no advantage. Raises ArtifactError (78) for rewards of other rollouts."""
    paths = [item.path for item in inputs["rewards"] if item.path is not None]
    if paths:
        rollouts = [item.artifact for item in inputs["tokens"] if item.artifact is not None]
        is_dead = np.isnan(RewardsReader(paths, rollouts).advantage)
        survey.reasons[is_dead & (survey.reasons == 0)] = DEAD


def _receive(stream: StreamReader, out: Out) -> tuple[list[Table], Survey]:
    """Copy a stream into a tokens artifact inside this one, with its ledger and manifest. Raises ArtifactError (76)."""
    folder = inside(out.dir)
    has_media = "media" in stream.schema.names
    writer = out.table(f"{folder.name}/{TOKENS}", with_media(TOKENS_V1) if has_media else TOKENS_V1)
    surveyor = Surveyor()
    for batch in stream:
        writer.write(batch, stream.digest)
        surveyor.add(batch)
    writer.close()
    assert stream.trailer is not None  # a stream that ends without one has raised
    keep_trailer(stream.trailer, folder, out.digests())
    tables = [Table(TableReader(folder / TOKENS, TOKENS_V1, written=True), sources_of(stream.trailer.manifest), 0)]
    return tables, surveyor.finish(tables)


def _check_trained(survey: Survey) -> None:
    """Raises StageError (65) where hardly anything is left to train on."""
    num_rows = len(survey.reasons)
    untrained = int((survey.reasons == UNTRAINED).sum())
    if untrained * 2 > num_rows:
        raise StageError(
            f"{untrained} of {num_rows} rows have nothing to train on; check --loss-scale and roles in tokenize",
            BAD_DATA,
        )
    if not (survey.reasons == 0).any():
        dead = " or what reward kept" if (survey.reasons == DEAD).any() else ""
        raise StageError(f"0 of {num_rows} rows are left to pack; check what tokenize kept{dead}", BAD_DATA)


def _check_order(cfg: Pack, inputs: Inputs) -> None:
    """Raise ConfigError (2) for scores without an order, or an order without scores."""
    if cfg.order != "given" and not inputs["scores"]:
        raise ConfigError(f"--order {cfg.order}: needs --scores DIR, what a model thinks of these rows", USAGE)
    if cfg.order == "given" and inputs["scores"]:
        raise ConfigError("--scores: only --order easy-first and hard-first read it; give one, or leave it out", USAGE)


def _nats(inputs: Inputs, tables: list[Table]) -> NDArray[np.float64] | None:
    """What each row cost the model that scored it. Raises ArtifactError (78) for scores of other rows."""
    given = inputs["scores"][0].path if inputs["scores"] else None
    if given is None:
        return None
    scores = ScoresReader(given)
    ids = [row for _, batch in batches(tables) for row in batch.column("row_id").to_pylist()]
    if ids != scores.row_ids():
        raise ArtifactError(f"{given}: not of these rows; score the tokens that are packed", MISMATCH)
    return scores.nats()


def _by_nats(cfg: Pack, nats: NDArray[np.float64], joined: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The order of rows: groups by their mean, rows of a group as they were, unscored ones at the end."""
    starts = group_starts(joined)
    counts = np.diff(starts)
    means = np.add.reduceat(nats, starts[:-1]) / counts
    order = np.argsort(means if cfg.order == "easy-first" else -means, kind="stable")
    offsets = np.cumsum(counts[order]) - counts[order]
    return np.repeat(starts[:-1][order] - offsets, counts[order]) + np.arange(len(joined))


def _plan(
    cfg: Pack, survey: Survey, tables: list[Table], nats: NDArray[np.float64] | None
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Bins as offsets and row ordinals; rows that do not fit are marked in `survey`. Raises StageError (65)."""
    from postmill._native import pack_rows

    kept = survey.reasons == 0
    whole = bool(kept.all())
    lengths = survey.lengths if whole else survey.lengths[kept]
    groups = None
    joined = survey.joined if whole else survey.joined[kept]
    if cfg.together and (survey.prompt >= 0).any():
        joined = joined | runs_that_fit(survey.prompt[kept], lengths, cfg.row_tokens)
    ordinals = None if whole else np.flatnonzero(kept).astype(np.uint32)
    if nats is not None:
        order = _by_nats(cfg, nats[kept], joined)
        lengths, joined = lengths[order], joined[order]
        ordinals = order.astype(np.uint32) if ordinals is None else ordinals[order]
    if joined.any():
        groups = group_starts(joined).astype(np.uint32)
    starts, rows, over_long = pack_rows(lengths, groups, cfg.row_tokens, cfg.strategy)
    if len(over_long):
        long = over_long if ordinals is None else ordinals[over_long]
        if cfg.on_long == "error" or len(long) == len(lengths):
            raise _too_long(cfg, survey, long, tables)
        survey.reasons[long] = LONG
    return starts, rows if ordinals is None else ordinals[rows]


def _too_long(cfg: Pack, survey: Survey, long: NDArray[np.uint32], tables: list[Table]) -> StageError:
    worst = int(long[np.argmax(survey.lengths[long])])
    share, median = len(long) / len(survey.lengths), int(np.median(survey.lengths))
    return StageError(
        f"{len(long)} of {len(survey.lengths)} rows ({share:.0%}) do not fit in {cfg.row_tokens} tokens: the longest,"
        f" {place_of(tables, worst)}, has {survey.lengths[worst]}, the median of all is {median};"
        " raise --row-tokens, truncate in tokenize, or pass --on-long drop",
        BAD_DATA,
    )


def _count(
    tables: list[Table], survey: Survey, starts: NDArray[np.uint32], rows: NDArray[np.uint32], ledger: Ledger
) -> Bins:
    """Second pass: what each bin trains on, and the ledger."""
    num_bins = len(starts) - 1
    trained_sum, weight_sum = np.zeros(num_bins, np.int64), np.zeros(num_bins, np.float64)
    bin_of_row = np.zeros(len(survey.lengths), np.uint32)
    bin_of_row[rows] = np.repeat(np.arange(num_bins, dtype=np.uint32), np.diff(starts))
    at = 0
    for table, batch in batches(tables):
        span = slice(at, at + batch.num_rows)
        at += batch.num_rows
        kept = survey.reasons[span] == 0
        bins = bin_of_row[span][kept]
        np.add.at(trained_sum, bins, to_numpy(batch.column("trained_tokens"))[kept])
        np.add.at(weight_sum, bins, to_numpy(batch.column("weight_sum"))[kept])
        ledger.keep(int(kept.sum()))
        if not kept.all():
            gone = np.flatnonzero(~kept)
            ledger.add(ledger_lines(batch, gone, survey.reasons[span][gone], table.first_source))
    return Bins(starts.astype(np.int64), rows, trained_sum, weight_sum)


def _write(cfg: Pack, bins: Bins, survey: Survey, out: Out) -> None:
    """Write the plan in visiting order."""
    from postmill._native import bin_order

    num_bins = len(bins.starts) - 1
    order = np.arange(num_bins, dtype=np.uint32)
    if cfg.strategy != "in_order":
        order = bin_order(cfg.seed, 0, num_bins)
    writer = out.table(BINS, BINS_V1)
    for at in range(0, num_bins, _BINS_A_BATCH):
        chunk = order[at : at + _BINS_A_BATCH]
        columns = _chunk(cfg, bins, survey, chunk)
        writer.write(pa.RecordBatch.from_arrays([columns[field.name] for field in BINS_V1], schema=BINS_V1))
    writer.close()


def _chunk(cfg: Pack, bins: Bins, survey: Survey, chunk: NDArray[np.uint32]) -> dict[str, pa.Array]:
    """The columns of BINS_V1 for the bins numbered `chunk`."""
    num_rows = np.diff(bins.starts)[chunk]
    offsets = np.append(0, np.cumsum(num_rows))
    rows = bins.rows[np.repeat(bins.starts[chunk] - offsets[:-1], num_rows) + np.arange(offsets[-1])]
    lengths = survey.lengths[rows].astype(np.int64)
    ends = np.cumsum(lengths)
    bin_ends = ends[offsets[1:] - 1]
    bin_lengths = np.diff(bin_ends, prepend=0)
    starts = ends - lengths - np.repeat(bin_ends - bin_lengths, num_rows)
    squares = np.add.reduceat(lengths.astype(np.float64) ** 2, offsets[:-1])
    patches = np.add.reduceat(survey.patches[rows], offsets[:-1])
    types = {field.name: field.type for field in BINS_V1}
    list_offsets = offsets.astype(np.int32)
    plain = {
        "length": bin_lengths.astype(np.int32),
        "trained_tokens": bins.trained_tokens[chunk],
        "weight_sum": bins.weight_sum[chunk],
        "num_rows": num_rows.astype(np.int32),
        "cost": bin_lengths + squares / (6 * cfg.hidden_size) + patches * cfg.patch_cost,
    }
    return {name: from_numpy(values, types[name]) for name, values in plain.items()} | {
        "rows": list_of(list_offsets, from_numpy(rows.astype(np.int64), pa.int64()), types["rows"]),
        "starts": list_of(list_offsets, from_numpy(starts.astype(np.int32), pa.int32()), types["starts"]),
    }


def _prove(cfg: Pack, survey: Survey, out: Out) -> None:
    """Read the plan back: each kept row once and whole, no other row, no bin too long. Raises StageError (70)."""
    seen = np.zeros(len(survey.lengths), np.bool_)
    num_seen, faults = 0, []
    for batch in TableReader(out.dir / BINS, BINS_V1):
        rows, offsets = to_numpy(batch.column("rows").values), to_numpy(batch.column("rows").offsets)
        starts, ends = to_numpy(batch.column("starts").values), np.empty(len(rows), np.int32)
        lengths = to_numpy(batch.column("length"))
        ends[:-1] = starts[1:]
        ends[offsets[1:] - 1] = lengths
        if (survey.lengths[rows] != ends - starts).any():
            faults.append("a row is cut")
        if (lengths > cfg.row_tokens).any():
            faults.append("a bin is too long")
        seen[rows] = True
        num_seen += len(rows)
    if num_seen != int(seen.sum()) or (seen != (survey.reasons == 0)).any():
        faults.append("a row is lost or doubled")
    if faults:
        raise StageError(f"{BINS}: {faults[0]}; nothing was committed, and this is a bug of ours", INTERNAL)


def _metrics(cfg: Pack, bins: Bins, survey: Survey) -> dict[str, Any]:
    num_bins = len(bins.trained_tokens)
    tokens = int(survey.lengths[survey.reasons == 0].sum(dtype=np.int64))
    return {
        "bins": num_bins,
        "rows": len(bins.rows),
        "tokens": tokens,
        "trained_tokens": int(bins.trained_tokens.sum()),
        "weight_sum": float(bins.weight_sum.sum()),
        "fill": round(tokens / (num_bins * cfg.row_tokens), 6),
        "rows_per_bin": round(len(bins.rows) / num_bins, 3),
        "longest_row": int(survey.lengths[bins.rows].max()),
    }
