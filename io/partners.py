"""Prompts with somebody else's answer: what KTO measures its KL term on.

Each labelled row is given the answer of another labelled row, half the table away. That is a function of the token
tables alone, so bins, steps and ranks do not change it; and samples of one prompt, which lie side by side, do not get
each other's answers. An answer is all from the first trained token on; nothing is encoded again.
"""

import numpy as np
from numpy.typing import NDArray

from postmill.io.packed import Bin, TokenRows


class Partners:
    """The mismatched rows of token tables."""

    def __init__(self, rows: TokenRows) -> None:
        self._rows = rows
        columns = rows.columns(np.arange(len(rows)), ["label", "length", "trained_tokens"])
        labelled = np.flatnonzero(~np.isnan(columns["label"]) & (columns["trained_tokens"] > 0))
        self.of_row = np.full(len(rows), -1, np.int64)
        """Whose answer each row is given; -1 where there is none."""
        if len(labelled) > 1:
            self.of_row[labelled] = np.roll(labelled, -(len(labelled) // 2))
        self._longest = int(columns["length"].max(initial=0))

    def lay(self, rows: NDArray[np.int64]) -> Bin:
        """The mismatched rows of `rows`, all of which have a partner, end to end, under the ordinals of their prompts.

        Answers are cut so that no row is longer than the longest of the tables.
        """
        pieces = [self._one(row, partner) for row, partner in zip(rows, self.of_row[rows], strict=True)]
        borders = np.cumsum([0, *(len(ids) for ids, _ in pieces)], dtype=np.int32)
        positions = np.arange(borders[-1], dtype=np.int32) - np.repeat(borders[:-1], np.diff(borders))
        ids, weights = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return Bin(ids, positions, borders, weights, rows)

    def _one(self, row: int, partner: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        prompt, answer = (self._rows.lay(np.array([number])) for number in (row, partner))
        first, start = (int(np.flatnonzero(laid.weights)[0]) for laid in (prompt, answer))
        ids = np.concatenate([prompt.input_ids[:first], answer.input_ids[start:]])
        weights = np.concatenate([np.zeros(first, np.float32), answer.weights[start:]])
        return ids[: self._longest], weights[: self._longest]
