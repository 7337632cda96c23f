"""From bins to the tensors of one forward pass: several bins are laid end to end, as rows are in a bin."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postmill.io.packed import Bin, PackedReader


class Batch(NamedTuple):
    """T tokens of all rows. `targets_T[t]` is the token after t, -1 at the end, and `weights_T[t]` its weight."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    targets_T: Tensor
    weights_T: Tensor
    row_starts: tuple[int, ...]
    """Where each row starts, and the end."""

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""
        ids, positions, targets, weights = (t.to(device, non_blocking=True) for t in self[:4])
        return Batch(ids, positions, targets, weights, self.row_starts)


def collate(bins: list[Bin]) -> Batch:
    """Tensors of one or more bins. A target never lies in another row: first tokens have weight 0."""
    ids = np.concatenate([b.input_ids for b in bins])
    weights = np.concatenate([b.weights for b in bins])
    targets = np.append(ids[1:], -1).astype(np.int64)
    lengths = np.concatenate([np.diff(b.cu_seqlens) for b in bins])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Batch(
        torch.from_numpy(ids.astype(np.int64))[None],
        torch.from_numpy(np.concatenate([b.position_ids for b in bins]).astype(np.int64))[None],
        torch.from_numpy(targets),
        torch.from_numpy(np.append(weights[1:], np.float32(0))),
        tuple(starts.tolist()),
    )


def load_batch(reader: PackedReader, bins: NDArray[np.int64]) -> Batch:
    """The batch of a block of bins. A block of padding (-1) alone gives the first bin without any weight."""
    real = [int(b) for b in bins if b >= 0]
    if real:
        return collate([reader.bin(index) for index in real])
    found = collate([reader.bin(0)])
    return found._replace(weights_T=torch.zeros_like(found.weights_T))
