"""Reading packed artifacts: the plan, and the tokens it points to, a bin at a time.

A packed artifact holds `bins.arrow` and either the tokens themselves (`tokens/`, when they came through a pipe) or the
digests of the tokens artifacts it was planned from. Rows are named by their ordinal in those tables laid end to
end. Everything is memory-mapped: opening costs a read of the plan, and a bin costs the copy of its own tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.arrays import to_numpy, validity
from postmill.io.errors import BAD_DATA, MISMATCH, NO_INPUT, ArtifactError
from postmill.io.manifest import INSIDE, SIDE_FILE, Artifact, load_artifact, recorded_paths
from postmill.io.media import MEDIA, Medium, media_of
from postmill.io.rollouts import ROLLOUTS
from postmill.io.schemas import BINS_V1, TOKENS_V1
from postmill.io.table import TableReader

BINS = "bins.arrow"
TOKENS = "tokens.arrow"
TOKEN_KINDS = ("tokens", "rollouts")
"""Kinds whose tables have the columns of TOKENS_V1."""


class Plan(NamedTuple):
    """One entry a bin, in the order of `bins.arrow`; see BINS_V1."""

    length: NDArray[np.int32]
    trained_tokens: NDArray[np.int64]
    weight_sum: NDArray[np.float64]
    num_rows: NDArray[np.int32]
    cost: NDArray[np.float64]


class Bin(NamedTuple):
    """The tokens of one bin: `T` of them, from `R` rows laid end to end. Do not write to `rows`."""

    input_ids: NDArray[np.int32]
    """[T]"""
    position_ids: NDArray[np.int32]
    """[T], from 0 in each row."""
    cu_seqlens: NDArray[np.int32]
    """[R + 1], where each row starts, and the end."""
    weights: NDArray[np.float32]
    """[T], weight of each token as a target; 0 for the first of each row, so that no target crosses a border."""
    rows: NDArray[np.int64]
    """[R], ordinals in the token tables; `PackedReader.values` has their other columns."""


class _Batch(NamedTuple):
    """NumPy views of one batch of TOKENS_V1."""

    table: pa.RecordBatch
    ids: NDArray[np.int32]
    id_offsets: NDArray[np.int64]
    span_offsets: NDArray[np.int32]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]
    weights: NDArray[np.float32]


def span_columns(
    batch: pa.RecordBatch,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Offsets (a row's spans are `offsets[i]:offsets[i + 1]`), and start, end and weight of all spans of a batch."""
    spans = batch.column("spans")
    values = spans.values
    starts, ends, weights = (to_numpy(values.field(name)) for name in ("start", "end", "weight"))
    return to_numpy(spans.offsets), starts, ends, weights


class TokenRows:
    """The rows of several token tables as one sequence."""

    def __init__(self, tables: list[TableReader]) -> None:
        self._places = [(table, index) for table in tables for index in range(table.num_batches)]
        counts = [table.rows_in(index) for table, index in self._places]
        self._offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
        self._open: dict[int, _Batch] = {}

    def __len__(self) -> int:
        return int(self._offsets[-1])

    @property
    def have_pictures(self) -> bool:
        """Whether rows may have pictures."""
        return any(MEDIA in table.schema.names for table, _ in self._places)

    def locate(self, rows: NDArray[np.int64]) -> list[tuple[_Batch, int]]:
        """Batch and index in it of each row. Raises IndexError beyond the last row, ArtifactError (65) on damage."""
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(int(rows.max()))
        batches = np.searchsorted(self._offsets, rows, side="right") - 1
        within = rows - self._offsets[batches]
        return [(self._batch(batch), index) for batch, index in zip(batches.tolist(), within.tolist(), strict=True)]

    def lay(self, rows: NDArray[np.int64]) -> Bin:
        """`rows` laid end to end. Raises IndexError beyond the last row."""
        return _lay(self.locate(rows), rows)

    def pictures(self, rows: NDArray[np.int64]) -> list[list[Medium]]:
        """The pictures of each of `rows`."""
        return [media_of(batch.table, index) for batch, index in self.locate(rows)]

    def answers(self, rows: NDArray[np.int64]) -> list[int]:
        """How many tokens of each of `rows` come before its first answer; all of them, without one."""
        parts = []
        for batch, index in self.locate(rows):
            turns = batch.table.column("turns")
            first, last = turns.offsets[index].as_py(), turns.offsets[index + 1].as_py()
            start, end = (
                to_numpy(turns.values.field(name))[first:last] for name in ("generated_start", "generated_end")
            )
            answered = start[end > start]
            if not len(answered):  # rollouts have no turns: what was sampled is the answer
                answered = batch.starts[batch.span_offsets[index] : batch.span_offsets[index + 1]]
            length = int(batch.id_offsets[index + 1] - batch.id_offsets[index])
            parts.append(int(answered[0]) if len(answered) else length)
        return parts

    def columns(self, rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See `PackedReader.columns`."""
        batches = np.searchsorted(self._offsets, rows, side="right") - 1
        within = rows - self._offsets[batches]
        values = {name: _missing(name, len(rows)) for name in names}
        for number in np.unique(batches).tolist():
            here = batches == number
            table = self._batch(number).table
            for name in names:
                column = table.column(name)
                present = validity(column)[within[here]]
                values[name][here] = np.where(present, to_numpy(column)[within[here]], values[name][here])
        return values

    def _batch(self, number: int) -> _Batch:
        opened = self._open.get(number)
        if opened is None:
            table, index = self._places[number]
            batch = table.batch(index)
            ids = batch.column("input_ids")
            opened = _Batch(batch, to_numpy(ids.values), to_numpy(ids.offsets), *span_columns(batch))
            self._open[number] = opened
        return opened


def _lay(places: list[tuple[_Batch, int]], rows: NDArray[np.int64]) -> Bin:
    """Rows, given where they lie, end to end."""
    pieces = [b.ids[b.id_offsets[i] : b.id_offsets[i + 1]] for b, i in places]
    borders = np.zeros(len(pieces) + 1, np.int32)
    np.cumsum([len(piece) for piece in pieces], out=borders[1:])
    length = int(borders[-1])
    weights = np.zeros(length, np.float32)
    for (b, i), border in zip(places, borders.tolist(), strict=False):
        for span in range(b.span_offsets[i], b.span_offsets[i + 1]):
            weights[border + b.starts[span] : border + b.ends[span]] = b.weights[span]
    weights[borders[:-1]] = 0.0
    positions = np.arange(length, dtype=np.int32) - np.repeat(borders[:-1], np.diff(borders))
    return Bin(np.concatenate(pieces), positions, borders, weights, rows)


def _missing(name: str, num_rows: int) -> NDArray[Any]:
    """What `columns` has where a row has no value."""
    kind = TOKENS_V1.field(name).type
    if pa.types.is_fixed_size_binary(kind):
        return np.zeros(num_rows, f"V{kind.byte_width}")
    return np.full(num_rows, np.nan if pa.types.is_floating(kind) else -1, kind.to_pandas_dtype())


def token_tables(artifact: Artifact) -> list[TableReader]:
    """The token tables of a tokens or rollouts artifact; none where only what was said of a stream has been kept."""
    files = {entry.path for entry in artifact.manifest.files}
    return [TableReader(artifact.file(name), TOKENS_V1) for name in (TOKENS, ROLLOUTS) if name in files]


class PackedReader:
    """A packed artifact with its tokens.

    Tokens that came through a pipe are inside. Others are looked for where `tokens` says (in packing order), else
    where they were when they were packed, and beside the packed artifact; wherever found, the digest must fit.
    Raises ArtifactError: (66) something is not there, (65) damaged, (78) not the tokens that were packed.
    """

    def __init__(self, path: Path, tokens: list[Path] | None = None) -> None:
        self.artifact = load_artifact(path, ("packed",))
        self.tokens = _find_tokens(self.artifact, tokens)
        tables = [token_tables(artifact) for artifact in self.tokens]
        self._tokens = TokenRows([table for artifact in tables for table in artifact])
        self._tables = np.cumsum([0] + [len(TokenRows(artifact)) for artifact in tables[:-1]])
        """First row of each tokens artifact."""
        self._first_sources = np.cumsum(
            [0] + [len(artifact.manifest.metrics.get("sources", ())) for artifact in self.tokens]
        )
        self._bins = TableReader(self.artifact.file(BINS), BINS_V1)
        batches = list(self._bins)
        self.plan = Plan(*(_whole_column(batches, field) for field in Plan._fields))
        self._lists = [(to_numpy(batch["rows"].values), to_numpy(batch["rows"].offsets)) for batch in batches]
        self._offsets = np.cumsum([0] + [batch.num_rows for batch in batches])

    def __len__(self) -> int:
        """How many bins there are."""
        return len(self.plan.length)

    @property
    def token_rows(self) -> TokenRows:
        """The rows of the token tables, packed or not."""
        return self._tokens

    @property
    def num_rows(self) -> int:
        """How many rows the token tables have, packed or not."""
        return len(self._tokens)

    def rows(self, index: int) -> NDArray[np.int64]:
        """Ordinals of the rows in bin `index`."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch = int(np.searchsorted(self._offsets, index, side="right")) - 1
        values, offsets = self._lists[batch]
        within = index - int(self._offsets[batch])
        ids: NDArray[np.int64] = values[offsets[within] : offsets[within + 1]]
        return ids

    def bin(self, index: int) -> Bin:
        """The tokens of bin `index`. Raises IndexError, ArtifactError (65) if plan and tokens do not fit."""
        rows = self.rows(index)
        try:
            places = self._tokens.locate(rows)
        except IndexError as error:
            raise self._misfit(index, f"names row {error}, the tables have {self.num_rows}") from None
        laid = _lay(places, rows)
        if len(laid.input_ids) != self.plan.length[index]:
            wanted = self.plan.length[index]
            raise self._misfit(index, f"has {wanted} tokens, its rows have {len(laid.input_ids)}")
        return laid

    def columns(self, rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Fixed-width columns of TOKENS_V1 for `rows`, in their order.

        A null is NaN in a column of floats, -1 in one of integers, and zero bytes in one of ids.
        """
        return self._tokens.columns(rows, names)

    def layout(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of all bins end to end, and where each bin starts, and the end."""
        pieces = [values for values, _ in self._lists] or [np.empty(0, np.int64)]
        starts = [np.zeros(1, np.int64)]
        for _, offsets in self._lists:
            starts.append(starts[-1][-1] + offsets[1:].astype(np.int64) - int(offsets[0]))
        return np.concatenate(pieces), np.concatenate(starts)

    def values(self, rows: NDArray[np.int64], column: str) -> list[Any]:
        """Another column of TOKENS_V1 for `rows`, as Python values."""
        return [batch.table.column(column)[index].as_py() for batch, index in self._tokens.locate(rows)]

    def records(self, rows: NDArray[np.int64], columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """`rows` as Python values, for looking at them: these columns, or all and the media of rows that can have any.

        `source` counts the sources of all tokens artifacts as one.
        """
        in_order = []
        for (batch, index), row in zip(self._tokens.locate(rows), rows.tolist(), strict=True):
            wanted = columns or [name for name in (*TOKENS_V1.names, MEDIA) if name in batch.table.schema.names]
            [record] = batch.table.select(wanted).slice(index, 1).to_pylist()
            table = int(np.searchsorted(self._tables, row, side="right")) - 1
            in_order.append(record | {"source": record["source"] + self._first_sources[table]})
        return in_order

    def order(self, epoch: int, seed: int | None = None) -> NDArray[np.uint32]:
        """The order in which `epoch` visits the bins: a function of (seed, epoch, number of bins).

        The seed is that of packing unless one is given. Bins packed `in_order` keep their order in every epoch.
        """
        config = self.artifact.manifest.config
        if config["strategy"] == "in_order":
            return np.arange(len(self), dtype=np.uint32)
        from postmill._native import bin_order

        return bin_order(config["seed"] if seed is None else seed, epoch, len(self))

    def deal(self, order: NDArray[np.uint32], num_ranks: int, bins_per_rank: int) -> NDArray[np.int64]:
        """Bins of each step and rank, `[step, rank, bins_per_rank]`, -1 where the last step runs out.

        Steps are consecutive blocks of `order`; inside a step ranks get bins of nearly equal summed cost.
        """
        from postmill._native import deal_bins

        slots, _ = deal_bins(self.plan.cost[order], num_ranks, bins_per_rank)
        bins = np.append(order.astype(np.int64), -1)[slots]  # slot -1 picks the -1 at the end
        return bins.reshape(-1, num_ranks, bins_per_rank)

    def _misfit(self, index: int, what: str) -> ArtifactError:
        return ArtifactError(f"{self.artifact.path / BINS}: bin {index} {what}; run pack again", BAD_DATA)


def _whole_column(batches: list[pa.RecordBatch], name: str) -> NDArray[Any]:
    dtype = BINS_V1.field(name).type.to_pandas_dtype()
    return np.concatenate([np.empty(0, dtype), *(to_numpy(batch.column(name)) for batch in batches)])


def _find_tokens(packed: Artifact, given: list[Path] | None) -> list[Artifact]:
    """The tokens artifacts a plan was made from, in its order; see PackedReader."""
    if packed.file(INSIDE).is_dir():
        return [load_artifact(packed.file(INSIDE), TOKEN_KINDS)]
    wanted = [entry.digest for entry in packed.manifest.inputs if entry.port == "tokens"]
    recorded = [Path(path) for path in recorded_paths(packed).get("tokens", [])] if given is None else given
    if wanted and not recorded:
        raise ArtifactError(
            f"{packed.path}: its {SIDE_FILE} does not say where its tokens lie; name the tokens artifacts", NO_INPUT
        )
    if len(recorded) != len(wanted):
        raise ArtifactError(f"{packed.path}: {len(recorded)} tokens given, it was packed from {len(wanted)}", MISMATCH)
    return [_find_one(packed, path, digest) for path, digest in zip(recorded, wanted, strict=True)]


def _find_one(packed: Artifact, path: Path, digest: str) -> Artifact:
    places = [place for place in (path, packed.path.parent / path.name) if place.exists()]
    if not places:
        raise ArtifactError(f"{path}: no such tokens artifact, and {packed.path} points to it; move it back", NO_INPUT)
    artifacts = [load_artifact(place, TOKEN_KINDS) for place in places]
    fitting = [artifact for artifact in artifacts if artifact.digest == digest]
    if not fitting:
        raise ArtifactError(
            f"{places[0]}: digest {artifacts[0].digest}, {packed.path} was packed from {digest}", MISMATCH
        )
    return fitting[0]
