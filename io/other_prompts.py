"""Rows with other prompts: what a teacher reads that knows more than the student (a solution, an example, advice).

A row's answer is all from its first trained token on, and stays as it is; what comes before is replaced by the prompt
that stands in the same line of its file. Nothing is encoded again.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from postmill.io.arrays import to_numpy
from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.manifest import Artifact
from postmill.io.packed import Bin, TokenRows
from postmill.io.rollouts import PROMPTS
from postmill.io.schemas import PROMPTS_V1
from postmill.io.table import TableReader

_BLOCK = 4096
"""Rows that are looked at together."""


class OtherPrompts:
    """The prompts of an artifact in the place of those of `rows`."""

    def __init__(self, rows: TokenRows, prompts: Artifact) -> None:
        """Raises ArtifactError (78) where a row has no prompt there: another file, or a line that was left out."""
        self._rows = rows
        self._ids: list[NDArray[np.int32]] = []
        place: dict[tuple[int, int], int] = {}
        for batch in TableReader(prompts.file(PROMPTS), PROMPTS_V1):
            column = batch.column("input_ids")
            offsets, ids = to_numpy(column.offsets), to_numpy(column.values)
            lines = zip(to_numpy(batch.column("source")).tolist(), to_numpy(batch.column("line")).tolist(), strict=True)
            for number, line in enumerate(lines):
                place[line] = len(self._ids)
                self._ids.append(ids[offsets[number] : offsets[number + 1]])
        columns = rows.columns(np.arange(len(rows)), ["source", "line"])
        wanted = list(zip(columns["source"].astype(np.int64).tolist(), columns["line"].tolist(), strict=True))
        missing = [(row, line) for row, (source, line) in enumerate(wanted) if (source, line) not in place]
        if missing:
            row, line = missing[0]
            raise ArtifactError(
                f"{prompts.path}: has no prompt of line {line}, where row {row:,} comes from ({len(missing):,} such"
                " rows); make it of a file with the same lines",
                MISMATCH,
            )
        self._of_row = np.array([place[line] for line in wanted], np.int64)
        every = np.arange(len(rows))
        blocks = [self._answers(every[first : first + _BLOCK]) for first in range(0, len(rows), _BLOCK)]
        self._start = np.concatenate([np.empty(0, np.int64), *blocks])
        """Of each row's answer."""
        self._shift = np.array([len(self._ids[prompt]) for prompt in self._of_row], np.int64) - self._start

    def lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each row with its other prompt."""
        lengths: NDArray[np.int64] = self._rows.columns(rows, ["length"])["length"].astype(np.int64) + self._shift[rows]
        return lengths

    def _answers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the answer of each row starts: at its first trained token, or at the end where there is none."""
        laid = self._rows.lay(rows)
        starts = []
        for a, b in itertools.pairwise(laid.cu_seqlens.tolist()):
            trained = np.flatnonzero(laid.weights[a:b])
            starts.append(int(trained[0]) if len(trained) else b - a)
        return np.array(starts, np.int64)

    def lay(self, rows: NDArray[np.int64]) -> tuple[Bin, NDArray[np.int64]]:
        """`rows` with their other prompts end to end, and by how many tokens each answer lies later than before."""
        laid = self._rows.lay(rows)
        ids, weights = [], []
        for row, (a, b) in zip(rows.tolist(), itertools.pairwise(laid.cu_seqlens.tolist()), strict=True):
            prompt, start = self._ids[self._of_row[row]], self._start[row]
            ids.append(np.concatenate([prompt, laid.input_ids[a + start : b]]))
            weights.append(np.concatenate([np.zeros(len(prompt), np.float32), laid.weights[a + start : b]]))
        ends = np.cumsum([0, *map(len, ids)], dtype=np.int32)
        positions = np.arange(ends[-1], dtype=np.int32) - np.repeat(ends[:-1], np.diff(ends))
        made = Bin(np.concatenate(ids).astype(np.int32), positions, ends, np.concatenate(weights), rows)
        return made, self._shift[rows]
