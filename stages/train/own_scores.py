"""Log-probs of the weights a run starts from, for losses that compare with them over several steps.

They are computed in one pass before the first step, kept in memory (4 bytes a token), and saved in every checkpoint: a
run that goes on compares with the very numbers it began with.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from postmill.io.manifest import Artifact
from postmill.io.packed import PackedReader
from postmill.stages.shared.asked import Ask
from postmill.stages.train.checkpoint import OWN
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.objectives.needs import Needs
from postmill.stages.train.parallel.layout import Layout
from postmill.stages.train.plan import Data

_PLAIN = Needs(sampled=True)


class OwnScores:
    """Log-probs by token of all rows in bins, as `ScoresReader` gives them."""

    def __init__(self, reader: PackedReader, logp: NDArray[np.float32]) -> None:
        """logp: of the rows in the order of `reader.layout()`, end to end, by the token each is about."""
        rows, _ = reader.layout()
        lengths = reader.columns(rows, ["length"])["length"].astype(np.int64)
        self.logp = logp
        self._first = np.zeros(reader.num_rows, np.int64)
        self._first[rows] = np.cumsum(lengths) - lengths

    def tokens(self, rows: NDArray[np.int64], lengths: NDArray[np.int64], name: str) -> NDArray[np.float32]:
        """See `TokenScores`."""
        assert name == "logp"
        firsts = self._first[rows].tolist()
        return np.concatenate([self.logp[at : at + n] for at, n in zip(firsts, lengths.tolist(), strict=True)])


def start_scores(
    data: Data,
    needs: Needs,
    forward: Any,
    layout: Layout,
    *,
    resumed: Artifact | None,
    num_steps: int,
    shares: bool = False,
) -> dict[str, OwnScores]:
    """Log-probs of the start, by role, if the objective compares with them, nobody gave them, and there are steps to
    compare. resumed: the checkpoint to go on from. shares: see `BatchSource`."""
    if not set(needs.own) & set(needs.columns) or "old" in data.scores or num_steps == 1:
        return {}
    if resumed:
        return {"old": OwnScores(data.reader, load_file(resumed.file(OWN))["old"].numpy())}
    source = BatchSource(data.reader, _PLAIN, {}, data.rewards, data.pixels, shares=shares)
    return {"old": compute_own_scores(forward, source, layout)}


def compute_own_scores(forward: Any, source: BatchSource, layout: Layout) -> OwnScores:
    """One pass over all bins without gradients, dropout or noise; each rank takes its part."""
    reader, ranks = source.reader, layout.num_data
    starts = np.append(0, np.cumsum(reader.plan.length.astype(np.int64)))
    logps_T = torch.zeros(int(starts[-1]), dtype=torch.float32, device=layout.device)
    bins = np.pad(np.arange(len(reader)), (0, -len(reader) % ranks), constant_values=-1)
    ask = Ask(stats=frozenset({"logp"}), temperature=source.temperature)
    forward.eval()
    with torch.no_grad():
        for number in bins.reshape(-1, ranks)[:, layout.data_rank].tolist():
            logp_T = forward(source.load(np.array([number])).to(layout.device), ask).logp_T
            if number >= 0 and logp_T is not None:
                logps_T[starts[number] + 1 : starts[number + 1]] = logp_T[:-1]
    forward.train()
    return OwnScores(reader, layout.agreed(lambda: layout.sum(logps_T)).cpu().numpy())
