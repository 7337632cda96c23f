"""Random rows as a `Batch` with `Outputs`, and as the padded tensors TRL takes."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from postmill.io.packed import Bin
from postmill.stages.shared.asked import Outputs
from postmill.stages.shared.batch import Batch, Groups, collate


class Rows(NamedTuple):
    """`num_pairs` pairs, chosen before rejected or the other way round; weights are 1."""

    batch: Batch
    outputs: Outputs
    leaf: Tensor
    """What `outputs.logp_T` was made of: it wants a gradient."""

    def padded(self, values_T: Tensor) -> Tensor:
        """[2P, L]: chosen rows of all pairs, then rejected ones; scored tokens from the left."""
        order = [*self._rows(0), *self._rows(1)]
        pieces = [values_T[(self.batch.row_T == row) & self.batch.mask_T] for row in order]
        return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)

    def _rows(self, member: int) -> list[int]:
        found = [row for row in range(len(self.batch.row_R)) if self.batch.member_R[row] == member]
        return sorted(found, key=lambda row: int(self.batch.group_R[row]))


def random_rows(num_pairs: int = 5, seed: int = 0, *, scale: float = 1.0) -> Rows:
    """Log-probs in float64, a reference near them, collisions above them, margins."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 12, 2 * num_pairs)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    total = int(starts[-1])
    weights = np.zeros(total, np.float32)
    for start, length in zip(starts[:-1].tolist(), lengths.tolist(), strict=True):
        weights[start + int(rng.integers(1, length - 1)) : start + length] = 1.0
    weights[starts[:-1]] = 0
    ids = rng.integers(3, 60, total).astype(np.int32)
    positions = np.arange(total, dtype=np.int32) - np.repeat(starts[:-1], lengths)
    found = Bin(ids, positions, starts, weights, np.arange(100, 100 + 2 * num_pairs))
    side = np.stack([rng.permutation(2) for _ in range(num_pairs)]).reshape(-1).astype(np.int64)
    groups = Groups(np.repeat(np.arange(num_pairs), 2).astype(np.int64), side)
    batch = collate([found], {"margin": rng.random(2 * num_pairs)}, groups)
    generator = torch.Generator().manual_seed(seed)

    def randn() -> Tensor:
        return torch.randn(total, generator=generator, dtype=torch.float64)

    leaf = (-scale * randn().abs()).requires_grad_()
    logp_T = torch.where(batch.mask_T, leaf, 0)
    reference_T = torch.where(batch.mask_T, leaf.detach() + 0.3 * randn(), 0)
    collision_T = torch.where(batch.mask_T, -0.5 * randn().abs(), 0)
    batch = batch._replace(columns=batch.columns | {"ref_logp": reference_T})
    return Rows(batch, Outputs(logp_T=logp_T, collision_T=collision_T), leaf)
