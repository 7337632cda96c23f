"""The first pass over tokens: what planning needs to know of every row, and which rows cannot be packed."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.arrays import from_numpy, text, to_numpy, validity
from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.media import patches_of
from postmill.io.packed import TokenRows, span_columns
from postmill.io.schemas import LEDGER_V1
from postmill.io.table import TableReader

REASONS = ("", "empty", "nothing_to_train", "too_long", "no_advantage")
EMPTY, UNTRAINED, LONG, DEAD = 1, 2, 3, 4


class Survey(NamedTuple):
    """What planning needs to know of each row."""

    lengths: NDArray[np.uint32]
    joined: NDArray[np.bool_]
    """Whether the row belongs to the same pair as the row before it."""
    reasons: NDArray[np.uint8]
    """Index into `REASONS` of why the row is dropped, 0 if it is kept."""
    patches: NDArray[np.int64]
    """Patches of its pictures."""
    prompt: NDArray[np.int64]
    """Equal for neighbours that are samples of one prompt; -1 for other rows."""


class Table(NamedTuple):
    """One input: its rows, and what its `source` column counts."""

    reader: TableReader
    sources: list[str]
    first_source: int
    """How many sources the inputs before have; with that, all inputs' sources are numbered as one."""


def batches(tables: list[Table]) -> Iterator[tuple[Table, pa.RecordBatch]]:
    """All batches in order, with their table; pages are given back once a batch has been used."""
    for table in tables:
        for batch in table.reader:
            yield table, batch
            table.reader.release()


def place_in(table: Table, batch: pa.RecordBatch, row: int) -> str:
    """`file:line` of a row of `batch`, or its numbers where a maker of tokens names no files."""
    source, line = (batch.column(name)[row].as_py() for name in ("source", "line"))
    return f"{table.sources[source]}:{line}" if source < len(table.sources) else f"source {source} line {line}"


def _miscounted(batch: pa.RecordBatch) -> tuple[int, str] | None:
    """The first row of a batch whose `trained_tokens` is not what its spans cover, and what is wrong with it.

    A row's first token is never a target: what would predict it is the row before. Loss normalisers come from these
    counts, so a maker of tokens that counts otherwise is refused rather than believed.
    """
    offsets, starts, ends, _ = span_columns(batch)
    covered = np.append(0, np.cumsum(np.maximum(ends - np.maximum(starts, 1), 0), dtype=np.int64))
    expected = covered[offsets[1:]] - covered[offsets[:-1]]
    counted = to_numpy(batch.column("trained_tokens"))
    wrong = np.flatnonzero(expected != counted)
    if not len(wrong):
        return None
    row = int(wrong[0])
    return row, f"says {counted[row]} trained tokens, its spans have {expected[row]} (the first token is never one)"


class Surveyor:
    """The first pass, a batch at a time."""

    def __init__(self) -> None:
        self._lengths: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]
        self._joined: list[NDArray[np.bool_]] = [np.empty(0, np.bool_)]
        self._sides: list[NDArray[np.int8]] = [np.empty(0, np.int8)]
        self._reasons: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        self._patches: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._prompts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._last_prompt = (b"", -1)
        self._last_pair: bytes | None = None
        self._num_rows = 0
        self._fault: tuple[int, str] | None = None
        """The first row that is miscounted, and how. Where it came from is known only at the end of a stream."""

    def add(self, batch: pa.RecordBatch) -> NDArray[np.uint8]:
        """Look at the next batch of all tables; it is not kept. Returns why its rows are dropped: `Survey.reasons`."""
        if self._fault is None and (fault := _miscounted(batch)):
            self._fault = (self._num_rows + fault[0], fault[1])
        self._num_rows += batch.num_rows
        length = to_numpy(batch.column("length")).astype(np.uint32)
        trained = to_numpy(batch.column("trained_tokens"))
        reason = np.where((trained == 0) & ~validity(batch.column("label")), UNTRAINED, 0).astype(np.uint8)
        reason[length == 0] = EMPTY
        self._lengths.append(length)
        self._patches.append(patches_of(batch))
        self._reasons.append(reason)
        flags, self._last_pair = _join(batch, self._last_pair)
        self._joined.append(flags)
        side = batch.column("side")
        self._sides.append(np.where(validity(side), to_numpy(side), -1).astype(np.int8))
        prompts, self._last_prompt = _prompts(batch, self._last_prompt)
        self._prompts.append(prompts)
        return reason

    def finish(self, tables: list[Table]) -> Survey:
        """Raises ArtifactError (65) for a row that is miscounted or a pair with one side missing."""
        if self._fault:
            row, what = self._fault
            raise ArtifactError(f"{place_of(tables, row)} {what}; tokenize again", BAD_DATA)
        survey = Survey(
            np.concatenate(self._lengths),
            np.concatenate(self._joined),
            np.concatenate(self._reasons),
            np.concatenate(self._patches),
            np.concatenate(self._prompts),
        )
        _check_pairs(survey.joined, np.concatenate(self._sides), tables)
        spread(survey)
        return survey


def _join(batch: pa.RecordBatch, last: bytes | None) -> tuple[NDArray[np.bool_], bytes | None]:
    """Which rows belong to the pair of the row before them; `last` is the `pair_id` of the row before the batch.

    Rows without a side, as samples of one prompt are, may lie in different bins.
    """
    column = batch.column("pair_id")
    flags = np.zeros(batch.num_rows, np.bool_)
    has_side = validity(batch.column("side"))
    if column.null_count == batch.num_rows or not has_side.any():
        return flags, None
    ids = [own if there else None for own, there in zip(column.to_pylist(), has_side, strict=True)]
    for index, (before, own) in enumerate(zip([last, *ids], ids, strict=False)):
        flags[index] = own is not None and own == before
    return flags, ids[-1]


def _prompts(batch: pa.RecordBatch, last: tuple[bytes, int]) -> tuple[NDArray[np.int64], tuple[bytes, int]]:
    """`Survey.prompt` of a batch; `last` is the id and number of the last prompt before it, and is returned anew."""
    column = batch.column("pair_id")
    is_sample = validity(column) & ~validity(batch.column("side"))
    prompts = np.full(batch.num_rows, -1, np.int64)
    if not is_sample.any():
        return prompts, last
    ids = column.filter(pa.array(is_sample)).to_pylist()
    changes = np.array([own != before for before, own in zip([last[0], *ids], ids, strict=False)])
    prompts[is_sample] = last[1] + np.cumsum(changes)
    return prompts, (ids[-1], int(prompts[is_sample][-1]))


def runs_that_fit(keys: NDArray[np.int64], lengths: NDArray[np.uint32], most: int) -> NDArray[np.bool_]:
    """Which rows go into the bin of the row before them: neighbours of one key (not -1), `most` tokens at most."""
    is_fitting = np.zeros(len(keys), np.bool_)
    same = np.flatnonzero((keys[1:] == keys[:-1]) & (keys[1:] >= 0)) + 1
    last, total = -1, 0
    for row in same.tolist():
        if row - 1 != last:
            total = int(lengths[row - 1])
        fits = total + int(lengths[row]) <= most
        is_fitting[row] = fits
        total = int(lengths[row]) + (total if fits else 0)
        last = row
    return is_fitting


def group_starts(joined: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where each group of rows that must share a bin starts, and the end."""
    return np.append(np.flatnonzero(~joined), len(joined))


def _check_pairs(joined: NDArray[np.bool_], sides: NDArray[np.int8], tables: list[Table]) -> None:
    """Raises ArtifactError (65) for half a pair whose other half does not stand next to it. What has a text that fits
    a query (2) is no pair."""
    paired = sides >= 0
    if not paired.any():
        return
    starts = group_starts(joined)[:-1]
    there = [np.logical_or.reduceat(sides == side, starts) for side in (0, 1, 2)]
    whole = (there[0] & there[1]) | there[2]
    broken = np.flatnonzero(~whole & np.logical_or.reduceat(paired, starts))
    if len(broken):
        place = place_of(tables, int(starts[broken[0]]))
        raise ArtifactError(
            f"{place}: one side of a pair without the other beside it; tokenize the pair as one", BAD_DATA
        )


def place_of(tables: list[Table], row: int) -> str:
    """Where the row with this ordinal came from."""
    for table in tables:
        rows = TokenRows([table.reader])
        if row < len(rows):
            [(batch, index)] = rows.locate(np.array([row]))
            return place_in(table, batch.table, index)
        row -= len(rows)
    raise IndexError(row)


def spread(survey: Survey) -> None:
    """Drop the whole pair, in place, where one of its rows is dropped."""
    if survey.joined.any():
        starts = group_starts(survey.joined)
        worst = np.maximum.reduceat(survey.reasons, starts[:-1])
        survey.reasons[:] = np.repeat(worst, np.diff(starts))


def ledger_lines(
    batch: pa.RecordBatch, rows: NDArray[np.intp], reasons: NDArray[np.uint8] | None, first_source: int
) -> pa.RecordBatch:
    """Ledger lines of `rows` of `batch`: dropped for `reasons`, or, without, cut into pieces that hold all of them."""
    table = batch.select(["row_id", "source", "line", "length"]).take(from_numpy(rows.astype(np.int64), pa.int64()))
    words = ["wrapped"] * len(rows) if reasons is None else [REASONS[reason] for reason in reasons.tolist()]
    columns = {
        "row_id": table.column("row_id"),
        "source": from_numpy(to_numpy(table.column("source")) + np.int32(first_source), pa.int32()),
        "line": table.column("line"),
        "action": text(["truncated" if reasons is None else "dropped"] * len(words)),
        "reason": text(words),
        "tokens_before": table.column("length"),
        "tokens_after": table.column("length") if reasons is None else pa.nulls(len(words), pa.int32()),
    }
    return pa.RecordBatch.from_arrays([columns[field.name] for field in LEDGER_V1], schema=LEDGER_V1)
