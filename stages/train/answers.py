"""Rows for a model with an encoder and a decoder: a prompt, and one answer that is trained on."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.packed import PackedReader, token_tables


def check_one_answer(place: str, reader: PackedReader) -> None:
    """Raise ArtifactError (65) if a row trains on several answers: the decoder would read the prompts between them."""
    for tokens in reader.tokens:
        for table in token_tables(tokens):
            for batch in table:
                count_R = _trained_answers(batch)
                if (count_R > 1).any():
                    line = batch.column("row_id")[int(np.argmax(count_R > 1))].as_py().hex()
                    raise ArtifactError(
                        f"{place}: {int((count_R > 1).sum()):,} rows train on several answers, like row {line}, and an"
                        " encoder-decoder gives one; tokenize with --loss-scale last_round",
                        BAD_DATA,
                    )


def _trained_answers(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Number of turns of each row that hold a trained token."""
    ids, turns, spans = (batch.column(name) for name in ("input_ids", "turns", "spans"))
    starts = ids.offsets.to_numpy()[:-1].astype(np.int64)

    def absolute(column: pa.ListArray, name: str) -> NDArray[np.int64]:
        values = column.flatten().field(name).to_numpy(zero_copy_only=False).astype(np.int64)
        positions: NDArray[np.int64] = values + np.repeat(starts, np.diff(column.offsets.to_numpy()))
        return positions

    begin, end = absolute(spans, "start"), absolute(spans, "end")
    first, last = absolute(turns, "generated_start"), absolute(turns, "generated_end")
    at = np.searchsorted(end, first, side="right")  # the first span that ends after the turn begins
    is_trained = (at < len(begin)) & (np.append(begin, 0)[at] < last) & (first < last)
    row = np.repeat(np.arange(len(batch)), np.diff(turns.offsets.to_numpy()))
    return np.bincount(row, is_trained, minlength=len(batch)).astype(np.int64)
