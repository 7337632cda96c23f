"""What one look at all token rows of a packed artifact tells: the highest id, how turns close, the rows' channels."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.packed import PackedReader, token_tables


def max_id(reader: PackedReader) -> int:
    """The highest token id of all rows; -1 without any."""
    highest = -1
    for tokens in reader.tokens:
        for table in token_tables(tokens):
            for batch in table:
                ids = batch.column("input_ids").values.to_numpy()
                highest = max(highest, int(ids.max())) if len(ids) else highest
    return highest


def closing_ids(reader: PackedReader) -> dict[int, int]:
    """How often each token is the first of a closing that is trained on: what the model learns to stop with."""
    counts: dict[int, int] = {}
    for tokens in reader.tokens:
        for table in token_tables(tokens):
            for batch in table:
                ids, times = np.unique(_closings(batch), return_counts=True)
                for token, number in zip(ids.tolist(), times.tolist(), strict=True):
                    counts[token] = counts.get(token, 0) + number
    return counts


def _closings(batch: pa.RecordBatch) -> NDArray[np.int32]:
    """First closing token of each turn of a batch of TOKENS_V1 in which that token has a weight."""
    ids, turns, spans = (batch.column(name) for name in ("input_ids", "turns", "spans"))
    starts = ids.offsets.to_numpy()

    def absolute(column: pa.ListArray, name: str) -> NDArray[np.int64]:
        """Field `name` of every item, as an index into the batch's ids."""
        lengths = np.diff(column.offsets.to_numpy())
        values = column.flatten().field(name).to_numpy(zero_copy_only=False).astype(np.int64)
        absolute_values: NDArray[np.int64] = values + np.repeat(starts[:-1], lengths)
        return absolute_values

    closing, end = absolute(turns, "closing"), absolute(turns, "generated_end")
    closing = closing[closing < end]
    begin, stop = absolute(spans, "start"), absolute(spans, "end")
    if not len(begin) or not len(closing):
        return np.empty(0, np.int32)
    at = np.searchsorted(begin, closing, side="right") - 1
    trained = (at >= 0) & (closing < stop[np.maximum(at, 0)])
    values: NDArray[np.int32] = ids.values.to_numpy()[closing[trained]]
    return values


class Channels(NamedTuple):
    """The channels of a packed artifact's rows. Rows without one are in the channel `-`."""

    names: list[str]
    of_row: NDArray[np.int64]
    """Index into `names`, by row ordinal."""


def read_channels(reader: PackedReader) -> Channels:
    """All channels, by name."""
    channels: list[str] = []
    for tokens in reader.tokens:
        for table in token_tables(tokens):
            for batch in table:
                channels += [name or "-" for name in batch.column("channel").to_pylist()]
    names, of_row = np.unique(np.array(channels, dtype=str), return_inverse=True)
    return Channels(names.tolist(), of_row.astype(np.int64))
