"""Rows cut where a bin ends: the rest goes on in the next bin, so that every bin but the last is full.

The pieces are rows of their own, written into `tokens/` inside the artifact: whoever reads bins reads ordinary rows.
Nothing is lost and nothing is doubled. Each token of each row is in exactly one piece, in order, with its weight; only
the first token of a piece is no target, as the first token of any row, since what comes before it is not in its bin.
One pass, a batch at a time.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.arrays import fixed, from_numpy, list_of, to_numpy
from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.media import MEDIA
from postmill.io.schemas import SPAN, TOKENS_V1, TURN, with_pieces

_PLACES = ("start", "end", "generated_start", "generated_end", "closing")
"""Fields of a turn that are token indices."""


class _Cuts(NamedTuple):
    """The pieces of the rows of one batch."""

    row: NDArray[np.int64]
    """Index of the row of each piece."""
    start: NDArray[np.int64]
    """First token of each piece in its row."""
    end: NDArray[np.int64]
    first: NDArray[np.int64]
    """The first piece of each row."""


class Wrapper:
    """Cuts rows where bins of `row_tokens` end. Rows come in the order in which they are laid into the bins."""

    def __init__(self, row_tokens: int) -> None:
        self._row_tokens = row_tokens
        self._laid = 0
        """Tokens laid so far, in all bins."""
        self.cut_targets = 0
        """Trained tokens that became the first of a piece and so are no target any more."""
        self.cut_weight = 0.0
        """The sum of their weights."""

    def cut(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, NDArray[np.bool_]]:
        """The pieces of the rows of `batch`, in order, and which of the rows were cut. No row may be empty."""
        lengths = to_numpy(batch.column("length")).astype(np.int64)
        cuts = self._cuts(lengths)
        taken = batch.take(from_numpy(cuts.row, pa.int64()))
        sizes = cuts.end - cuts.start
        spans, piece_of_span = self._spans(batch, cuts)
        turns = self._turns(batch, cuts)
        counted, weights = self._count(spans, piece_of_span, cuts, lengths)
        ids = batch.column("input_ids")
        offsets = to_numpy(ids.offsets)
        flat = ids.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        of_pieces = np.append(0, np.cumsum(sizes))
        places = [pa.py_buffer(of_pieces)]
        list_type = TOKENS_V1.field("input_ids").type
        changed = {
            "row_id": fixed(_identities(batch, cuts), 16),
            "input_ids": pa.Array.from_buffers(list_type, len(sizes), [None, *places], children=[flat]),
            "turns": turns,
            "spans": list_of(_offsets(piece_of_span, len(sizes)), spans, TOKENS_V1.field("spans").type),
            "length": from_numpy(sizes.astype(np.int32), pa.int32()),
            "trained_tokens": from_numpy(counted.astype(np.int32), pa.int32()),
            "weight_sum": from_numpy(weights, pa.float64()),
            "piece_of": batch.column("row_id").take(from_numpy(cuts.row, pa.int64())),
            "piece_start": from_numpy(cuts.start.astype(np.int32), pa.int32()),
        }
        schema = with_pieces(TOKENS_V1)
        columns = [changed[field.name] if field.name in changed else taken.column(field.name) for field in schema]
        return pa.RecordBatch.from_arrays(columns, schema=schema), np.diff(np.append(cuts.first, len(sizes))) > 1

    def _cuts(self, lengths: NDArray[np.int64]) -> _Cuts:
        ends = self._laid + np.cumsum(lengths)
        starts = ends - lengths
        self._laid = int(ends[-1]) if len(ends) else self._laid
        first_bin, last_bin = starts // self._row_tokens, (ends - 1) // self._row_tokens
        counts = last_bin - first_bin + 1
        row = np.repeat(np.arange(len(lengths)), counts)
        first = np.cumsum(counts) - counts
        of_bin = (first_bin[row] + np.arange(len(row)) - first[row]) * self._row_tokens
        start = np.maximum(starts[row], of_bin) - starts[row]
        end = np.minimum(ends[row], of_bin + self._row_tokens) - starts[row]
        return _Cuts(row, start, end, first)

    def _spans(self, batch: pa.RecordBatch, cuts: _Cuts) -> tuple[pa.Array, NDArray[np.int64]]:
        """The spans of all pieces, and the piece of each."""
        values, source, piece = _spread(batch.column("spans"), cuts)
        start, end = (
            np.clip(to_numpy(values.field(name))[source], cuts.start[piece], cuts.end[piece]) for name in _PLACES[:2]
        )
        arrays = [
            from_numpy((start - cuts.start[piece]).astype(np.int32), pa.int32()),
            from_numpy((end - cuts.start[piece]).astype(np.int32), pa.int32()),
            from_numpy(to_numpy(values.field("weight"))[source], pa.float32()),
        ]
        return pa.StructArray.from_arrays(arrays, fields=list(SPAN)), piece

    def _turns(self, batch: pa.RecordBatch, cuts: _Cuts) -> pa.Array:
        values, source, piece = _spread(batch.column("turns"), cuts)
        taken = values.take(from_numpy(source, pa.int64()))
        arrays = []
        for field in TURN:
            column = taken.field(field.name)
            if field.name in _PLACES:
                place = np.clip(to_numpy(column), cuts.start[piece], cuts.end[piece]) - cuts.start[piece]
                column = from_numpy(place.astype(np.int32), pa.int32())
            arrays.append(column)
        turns = pa.StructArray.from_arrays(arrays, fields=list(TURN))
        return list_of(_offsets(piece, len(cuts.row)), turns, TOKENS_V1.field("turns").type)

    def _count(
        self, spans: pa.Array, piece: NDArray[np.int64], cuts: _Cuts, lengths: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Trained tokens and weight of each piece; its first token is no target."""
        start, end, weight = (to_numpy(spans.field(name)) for name in ("start", "end", "weight"))
        targets = np.maximum(end - np.maximum(start, 1), 0).astype(np.int64)
        at_cut = (start == 0) & (cuts.start[piece] > 0)
        self.cut_targets += int(at_cut.sum())
        self.cut_weight += float(weight[at_cut].sum(dtype=np.float64))
        counted = np.zeros(len(cuts.row), np.int64)
        np.add.at(counted, piece, targets)
        return counted, np.bincount(piece, targets * weight.astype(np.float64), len(cuts.row)).astype(np.float64)


def check_may_be_cut(batch: pa.RecordBatch, place: str) -> None:
    """Raises ArtifactError (65) for rows that mean something only as a whole: pairs, labelled rows, pictures."""
    for column, what in (("side", "the sides of a pair"), ("label", "rows with a label")):
        if batch.column(column).null_count < batch.num_rows:
            raise ArtifactError(f"{place}: wrapped cuts rows, and {what} cannot be cut; use best_fit", BAD_DATA)
    if MEDIA in batch.schema.names and len(batch.column(MEDIA).flatten()):
        raise ArtifactError(f"{place}: wrapped cuts rows, and pictures cannot be cut; use best_fit", BAD_DATA)


def _spread(column: pa.Array, cuts: _Cuts) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """The values of a list column of `[start, end)`; then, for each part of each of them that is in a piece of its own,
    which of the values it is of, and the piece."""
    offsets = to_numpy(column.offsets).astype(np.int64)
    values = column.values
    source = np.arange(offsets[0], offsets[-1])
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    start, end = (to_numpy(values.field(name))[source].astype(np.int64) for name in _PLACES[:2])
    # pieces of all rows lie end to end, so one search finds a place of any row among them
    length = np.zeros(len(offsets) - 1, np.int64)
    np.maximum.at(length, cuts.row, cuts.end)
    begin = np.append(0, np.cumsum(length))[:-1]
    borders = begin[cuts.row] + cuts.start
    final = np.append(cuts.first[1:], len(cuts.row))[row] - 1
    first = np.minimum(np.searchsorted(borders, begin[row] + start, side="right") - 1, final)
    last = np.searchsorted(borders, begin[row] + np.maximum(end, start + 1) - 1, side="right") - 1
    counts = np.maximum(np.minimum(last, final) - first, 0) + 1
    part = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return values, np.repeat(source, counts), np.repeat(first, counts) + part


def _offsets(piece: NDArray[np.int64], num_pieces: int) -> NDArray[np.int32]:
    return np.append(0, np.cumsum(np.bincount(piece, minlength=num_pieces))).astype(np.int32)


def _identities(batch: pa.RecordBatch, cuts: _Cuts) -> list[bytes]:
    """The first piece keeps the identity of its row; those of others follow from it and from where they start."""
    rows = batch.column("row_id").to_pylist()
    identities = []
    for row, start in zip(cuts.row.tolist(), cuts.start.tolist(), strict=True):
        identity = rows[row]
        if start:
            identity = hashlib.blake2b(identity + start.to_bytes(8, "little"), digest_size=16).digest()
        identities.append(identity)
    return identities
