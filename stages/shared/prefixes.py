"""Rows that begin alike, laid out so that what they share is computed once: a tree of segments.

What a causal model computes for a token depends on the tokens before it in its row and on nothing else. So n answers to
one prompt, or both answers of a pair, need the prompt's hidden states once, and so do prompts that share a system
message. Losses see nothing of it: hidden states are handed out again to every row before the head. Letters: T tokens of
a batch, S of its segments.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Shared(NamedTuple):
    """The tokens of a batch without repeated beginnings."""

    token_S: Tensor
    """int64: the token of the batch that stands at each place of the segments."""
    place_T: Tensor
    """int64: where each token of the batch is computed."""
    starts: tuple[int, ...]
    """Where each segment starts, and the end."""
    parents: tuple[int, ...]
    """The segment that each one goes on from, which stands before it; -1 for the first of a row."""

    def to(self, device: torch.device) -> "Shared":
        """The same on `device`."""
        return self._replace(token_S=self.token_S.to(device), place_T=self.place_T.to(device))


def share(ids_T: NDArray[np.int64], row_starts: tuple[int, ...], *, least: float = 0.0) -> Shared | None:
    """The segments of rows that lie end to end; None where no more than the part `least` of the tokens is saved."""
    rows = [ids_T[start:end] for start, end in itertools.pairwise(row_starts)]
    order = sorted(range(len(rows)), key=lambda row: rows[row].astype(">i8").tobytes())
    alike = [_alike(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
    if sum(alike) <= least * len(ids_T):
        return None
    place_T = np.empty(len(ids_T), np.int64)
    tokens: list[NDArray[np.int64]] = []
    starts, parents = [0], []
    waiting = [(0, len(order), 0, -1)]
    while waiting:
        # rows first:last of the order are alike in their first `depth` tokens, which end in the segment `parent`
        first, last, depth, parent = waiting.pop()
        one = row_starts[order[first]]
        end = min(alike[first : last - 1], default=len(rows[order[first]]))
        if end > depth:
            tokens.append(np.arange(one + depth, one + end))
            for row in order[first:last]:
                place_T[row_starts[row] + depth : row_starts[row] + end] = np.arange(
                    starts[-1], starts[-1] + end - depth
                )
            parents.append(parent)
            parent = len(parents) - 1
            starts.append(starts[-1] + end - depth)
        cuts = [at + 1 for at in range(first, last - 1) if alike[at] == end]
        for begin, stop in zip([first, *cuts], [*cuts, last], strict=True):
            if len(rows[order[begin]]) > end or stop - begin > 1:
                waiting.append((begin, stop, end, parent))
    return Shared(torch.from_numpy(np.concatenate(tokens)), torch.from_numpy(place_T), tuple(starts), tuple(parents))


def _alike(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many first tokens are the same."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length
