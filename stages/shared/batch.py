"""From bins to the tensors of one forward pass: several bins are laid end to end, as rows are in a bin.

Whatever is said of a token (its weight, a log-prob another model gave it) is stored by the token it is about. A model
predicts the token after the one it reads, so all of it is shifted by one, here and nowhere else.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from postmill.io.packed import Bin
from postmill.stages.shared.media.pixels import Media
from postmill.stages.shared.prefixes import Shared

ALIGNMENT: dict[str, Literal["token", "row"]] = {
    "advantage": "row",
    "advantages": "token",
    "engine_logp": "token",
    "group_tokens": "row",
    "kl_logp": "token",
    "label": "row",
    "label_list": "row",
    "margin": "row",
    "old_logp": "token",
    "ref_logp": "token",
    "ref_top_ids": "token",
    "ref_top_logp": "token",
    "returns": "token",
    "step_label": "token",
    "teacher_logp": "token",
    "teacher_top_ids": "token",
    "teacher_top_logp": "token",
    "values": "token",
}
"""What an entry of `Batch.columns` is about, by name."""


class Batch(NamedTuple):
    """T tokens of R rows. Entry t of what is per token is about the token after t, the target."""

    input_ids_1T: Tensor
    position_ids_1T: Tensor
    targets_T: Tensor
    """int64; -1 at the end."""
    mask_T: Tensor
    """bool: the target is scored. False where a target would lie in another row."""
    weights_T: Tensor
    """float32 loss weights; 0 where the target is not trained on."""
    row_starts: tuple[int, ...]
    """R + 1: where each row starts, and the end."""
    row_T: Tensor
    """int64: the row, 0 to R - 1, of each token."""
    row_R: Tensor
    """int64: ordinals in the tables, which order rows across micro-batches and ranks; -1 in padding."""
    group_R: Tensor
    """int64: which rows belong together, 0 to G - 1."""
    member_R: Tensor
    """int64 place in the group: 0 chosen or anchor, 1 rejected or negative, 2 positive; -1 in padding."""
    points_N: Tensor
    """int64: tokens that a points head reads; the last of each row."""
    columns: dict[str, Tensor]
    """Other columns by name: float32 [T] or [R], as `ALIGNMENT` says; `label_list` is [R, C], and a model's likeliest
    tokens are [T, K]."""
    media: Media | None = None
    """The rows' pictures."""
    shared: Shared | None = None
    """How rows that begin alike can be computed together."""

    def to(self, device: torch.device) -> "Batch":
        """The same on `device`."""

        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        tensors = {name: moved(value) for name, value in self._asdict().items()}
        columns = {name: moved(column) for name, column in self.columns.items()}
        media = None if self.media is None else self.media.to(device)
        shared = None if self.shared is None else self.shared.to(device)
        return self._replace(**tensors | {"columns": columns, "media": media, "shared": shared})


class Groups(NamedTuple):
    """Which rows belong together, as NumPy arrays of R entries; see `Batch`."""

    group: NDArray[np.int64]
    member: NDArray[np.int64]


def collate(bins: list[Bin], columns: Mapping[str, NDArray[Any]] | None = None, groups: Groups | None = None) -> Batch:
    """Tensors of one or more bins. A target never lies in another row: first tokens have weight 0.

    columns: [T] by token, or [R], in the order of the bins' rows. Without `groups` each row is one of its own.
    """
    ids = np.concatenate([b.input_ids for b in bins])
    weights = np.concatenate([b.weights for b in bins])
    lengths = np.concatenate([np.diff(b.cu_seqlens) for b in bins])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    num_rows = len(lengths)
    groups = groups or Groups(np.arange(num_rows), np.zeros(num_rows, np.int64))
    shifted_weights = _shift(weights)
    tensors = {
        name: torch.from_numpy((_shift(column) if ALIGNMENT[name] == "token" else column).astype(np.float32))
        for name, column in (columns or {}).items()
    }
    return Batch(
        input_ids_1T=torch.from_numpy(ids.astype(np.int64))[None],
        position_ids_1T=torch.from_numpy(np.concatenate([b.position_ids for b in bins]).astype(np.int64))[None],
        targets_T=torch.from_numpy(np.append(ids[1:], -1).astype(np.int64)),
        mask_T=torch.from_numpy(shifted_weights != 0),
        weights_T=torch.from_numpy(shifted_weights),
        row_starts=tuple(starts.tolist()),
        row_T=torch.from_numpy(np.repeat(np.arange(num_rows), lengths)),
        row_R=torch.from_numpy(np.concatenate([b.rows for b in bins]).astype(np.int64)),
        group_R=torch.from_numpy(groups.group),
        member_R=torch.from_numpy(groups.member),
        points_N=torch.from_numpy(starts[1:] - 1),
        columns=tensors,
    )


def as_padding(batch: Batch) -> Batch:
    """The same tokens, of which nothing is scored, trained on or counted."""
    return batch._replace(
        mask_T=torch.zeros_like(batch.mask_T),
        weights_T=torch.zeros_like(batch.weights_T),
        row_R=torch.full_like(batch.row_R, -1),
        member_R=torch.full_like(batch.member_R, -1),
    )


def _shift(values: NDArray[Any]) -> NDArray[Any]:
    """What is stored by token, by the token before it."""
    return np.concatenate([values[1:], np.zeros_like(values[:1])])
