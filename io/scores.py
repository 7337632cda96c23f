"""Reading scores: what a model said of each token of the rows of token tables, joined by the rows' ordinals."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postmill.io.arrays import to_numpy
from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.manifest import load_artifact
from postmill.io.packed import PackedReader
from postmill.io.schemas import SCORES_V1
from postmill.io.table import TableReader

SCORES = "scores.arrow"
ABSENT = -1e4
"""Log-prob of a likeliest token that the vocabulary of the rows does not have; its id is -1. No probability is left."""
NO_TEXT = 1.0
"""In place of a log-prob, where scores come from tokens of another tokenizer: nothing is known of the text up to here.
NaN: the text goes on, and the next number is of all of it."""


class ScoresReader:
    """A scores artifact. Values are memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.artifact = load_artifact(path, ("scores",))
        self._table = TableReader(self.artifact.file(SCORES), SCORES_V1)
        counts = [self._table.rows_in(index) for index in range(self._table.num_batches)]
        self._offsets = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def row_ids(self) -> list[bytes]:
        """The rows that were scored."""
        batches = (self._table.batch(number) for number in range(self._table.num_batches))
        return [row for batch in batches for row in batch.column("row_id").to_pylist()]

    def nats(self) -> NDArray[np.float64]:
        """Mean of -log p over the scored tokens of each row; NaN where there are none."""
        found = []
        for number in range(self._table.num_batches):
            column = self._table.batch(number).column("logp")
            offsets = to_numpy(column.offsets).astype(np.int64)
            sums = np.append(0.0, np.cumsum(to_numpy(column.values).astype(np.float64)))[offsets]
            counts = np.diff(offsets)
            found.append(np.where(counts > 0, -np.diff(sums) / np.maximum(counts, 1), np.nan))
        return np.concatenate(found) if found else np.empty(0)

    def check(self, reader: PackedReader) -> None:
        """Raise ArtifactError (78) unless these are scores of the very rows of `reader`."""
        path, num_rows = self.artifact.path, reader.num_rows
        if len(self) != num_rows:
            raise ArtifactError(
                f"{path}: scores of {len(self):,} rows, the token tables have {num_rows:,}; score these tokens",
                MISMATCH,
            )
        for number in range(self._table.num_batches):
            rows = np.arange(self._offsets[number], self._offsets[number + 1])
            mine = to_numpy(self._table.batch(number).column("row_id"))
            differs = np.flatnonzero(mine != reader.columns(rows, ["row_id"])["row_id"])
            if len(differs):
                raise ArtifactError(
                    f"{path}: row {rows[differs[0]]:,} is of other tokens than the row there; score these tokens",
                    MISMATCH,
                )

    def tokens(self, rows: NDArray[np.int64], lengths: NDArray[np.int64], name: str) -> NDArray[np.float32]:
        """Column `name` by token, rows end to end; NaN where a token has no score.

        lengths: tokens of each row. Raises ArtifactError (78) if the column was not asked for when scoring.
        """
        pieces = []
        batches = np.searchsorted(self._offsets, rows, side="right") - 1
        for row, number, length in zip(rows.tolist(), batches.tolist(), lengths.tolist(), strict=True):
            batch = self._table.batch(number)
            piece = np.full(length, np.nan, np.float32)
            values, start = self._row(batch, row - int(self._offsets[number]), name)
            piece[start : start + len(values)] = values
            pieces.append(piece)
        return np.concatenate(pieces)

    def top(self, rows: NDArray[np.int64], lengths: NDArray[np.int64], name: str) -> NDArray[np.float32]:
        """[T, K] column `top_ids` or `top_logp` by token, rows end to end; NaN where a token has no score, or id 0.

        Raises ArtifactError (78) if it was not asked for when scoring.
        """
        count = int(self.artifact.manifest.config.get("top_k", 0))
        if not count:
            raise ArtifactError(f"{self.artifact.path}: has no likeliest tokens; score again with --top-k 64", MISMATCH)
        top_values = np.full((int(lengths.sum()), count), 0 if name == "top_ids" else np.nan, np.float32)
        batches = np.searchsorted(self._offsets, rows, side="right") - 1
        borders = np.cumsum([0, *lengths.tolist()])
        for row, number, border in zip(rows.tolist(), batches.tolist(), borders.tolist(), strict=False):
            values, start = self._row(self._table.batch(number), row - int(self._offsets[number]), name)
            piece = values.reshape(-1, count)
            top_values[border + start : border + start + len(piece)] = piece
        return top_values

    def values(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[rows, C]: what a head of the whole row said: a reward, classes, an embedding.

        Raises ArtifactError (78) if these are scores of tokens.
        """
        if self.artifact.manifest.metrics.get("head") == "token":
            raise ArtifactError(
                f"{self.artifact.path}: a critic's numbers, one for each token; score with a reward model", MISMATCH
            )
        batches = np.searchsorted(self._offsets, rows, side="right") - 1
        parts = []
        for row, number in zip(rows.tolist(), batches.tolist(), strict=True):
            column = self._table.batch(number).column("values")
            index = row - int(self._offsets[number])
            if not column.is_valid()[index].as_py():
                raise ArtifactError(
                    f"{self.artifact.path}: scores of tokens; score with a reward model, a classifier, or --head pool",
                    MISMATCH,
                )
            parts.append(to_numpy(column.values)[slice(*to_numpy(column.offsets)[index : index + 2])])
        return np.stack(parts) if parts else np.empty((0, 0), np.float32)

    def _row(self, batch: Any, index: int, name: str) -> tuple[NDArray[np.float32], int]:
        column = batch.column(name)
        if not column.is_valid()[index].as_py():
            raise ArtifactError(f"{self.artifact.path}: has no {name}; score again with --{name}", MISMATCH)
        offsets = to_numpy(column.offsets)
        values: NDArray[np.float32] = to_numpy(column.values)[offsets[index] : offsets[index + 1]]
        return values, int(to_numpy(batch.column("start"))[index])
