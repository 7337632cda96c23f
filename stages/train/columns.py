"""Batches of a packed artifact with the columns an objective needs, from the token tables and from scores."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from postmill.io.packed import Bin, PackedReader
from postmill.io.scores import ScoresReader
from postmill.stages.shared.batch import ALIGNMENT, Batch, Groups, as_padding, collate
from postmill.stages.train.objectives.needs import Needs


class BatchSource:
    """Bins as batches."""

    def __init__(self, reader: PackedReader, needs: Needs, scores: Mapping[str, ScoresReader] | None = None) -> None:
        """scores: by the role of the model that gave them; `ref` is where the column `ref_logp` comes from."""
        self.reader, self._needs, self._scores = reader, needs, scores or {}

    def load(self, bins: NDArray[np.int64]) -> Batch:
        """The batch of a block of bins. A block of padding (-1) alone gives the first bin as padding."""
        real = [int(b) for b in bins if b >= 0]
        if not real:
            return as_padding(self._collate([self.reader.bin(0)]))
        return self._collate([self.reader.bin(index) for index in real])

    def _collate(self, bins: list[Bin]) -> Batch:
        rows = np.concatenate([b.rows for b in bins])
        names = [name for name in self._needs.columns if ALIGNMENT[name] == "row"]
        columns = self.reader.columns(rows, names)
        for name in self._needs.columns:
            if ALIGNMENT[name] == "token":
                role, _, kind = name.partition("_")
                lengths = np.concatenate([np.diff(b.cu_seqlens) for b in bins])
                columns[name] = self._scores[role].tokens(rows, lengths, kind)
        return collate(bins, columns, self._groups(rows))

    def _groups(self, rows: NDArray[np.int64]) -> Groups | None:
        if self._needs.group == "row":
            return None
        found = self.reader.columns(rows, ["pair_id", "side"])
        _, group = np.unique(found["pair_id"], return_inverse=True)
        return Groups(group.astype(np.int64), found["side"].astype(np.int64))
