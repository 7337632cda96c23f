"""Batches of a packed artifact with the columns an objective needs: from the token tables, scores and rewards."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from postmill.io.packed import Bin, PackedReader
from postmill.io.partners import Partners
from postmill.io.rewards import BY_TOKEN, RewardsReader
from postmill.io.scores import ScoresReader
from postmill.stages.progress import Progress
from postmill.stages.shared.batch import ALIGNMENT, Batch, Groups, as_padding, collate
from postmill.stages.shared.media.pixels import Pixels
from postmill.stages.shared.prefixes import share
from postmill.stages.train.labels import label_lists, step_labels
from postmill.stages.train.objectives.needs import Needs
from postmill.stages.train.plan import SAMPLER, TOP, Data, TokenScores

_WORTH_SHARING = 1 / 8
"""Part of a batch's tokens that has to be saved: rows in pieces cost attention more calls, and most chats begin with
the same few tokens of their template."""


class BatchSource:
    """Bins as batches."""

    def __init__(
        self,
        reader: PackedReader,
        needs: Needs,
        scores: Mapping[str, TokenScores] | None = None,
        rewards: RewardsReader | None = None,
        pixels: Pixels | None = None,
        *,
        shares: bool = False,
    ) -> None:
        """scores: by the role of the model that gave them; `ref` is where the column `ref_logp` comes from. pixels: for
        rows with pictures. shares: say of batches how to compute once what their rows share."""
        self.reader, self._needs, self.data = reader, needs, Data(reader, scores or {}, rewards, pixels)
        self.temperature = rewards.temperature if rewards is not None and needs.sampled else needs.temperature
        """At which log-probs are compared."""
        self._shares = shares
        self._partners = Partners(reader.token_rows) if needs.partner_columns else None

    def load(self, bins: NDArray[np.int64]) -> Batch:
        """The batch of a block of bins. A block of padding (-1) alone gives the first bin as padding."""
        Progress.beat()
        real = [int(b) for b in bins if b >= 0]
        if not real:
            return as_padding(self._collate([self.reader.bin(0)]))
        return self._collate([self.reader.bin(index) for index in real])

    def expect(self, bins: NDArray[np.int64]) -> None:
        """Begin to make the pictures of bins that are asked for next."""
        rows = [self.reader.rows(int(index)) for index in bins if index >= 0]
        if self.data.pixels is not None and rows:
            self.data.pixels.expect(self.reader.token_rows.pictures(np.concatenate(rows)))

    def load_partners(self, bins: NDArray[np.int64]) -> Batch:
        """What the first pass of a step sees: the batch of `bins`, or its prompts with other rows' answers.

        Rows that have no partner are left out; without any there is padding.
        """
        if self._partners is None:
            return self.load(bins)
        rows = np.concatenate([self.reader.rows(int(b)) for b in bins if b >= 0] or [np.empty(0, np.int64)])
        rows = rows[self._partners.of_row[rows] >= 0]
        if not len(rows):
            padding = as_padding(self._collate([self.reader.bin(0)]))
            nothing = torch.zeros(len(padding.row_T))
            return padding._replace(columns=dict.fromkeys(self._needs.partner_columns, nothing))
        laid = self._partners.lay(rows)
        lengths = np.diff(laid.cu_seqlens)
        columns = {}
        for name in self._needs.partner_columns:
            role, _, kind = name.partition("_")
            columns[name] = self.data.scores[role].tokens(rows, lengths, kind)
        return collate([laid], columns)

    def _collate(self, bins: list[Bin]) -> Batch:
        rows = np.concatenate([b.rows for b in bins])
        lengths = np.concatenate([np.diff(b.cu_seqlens) for b in bins])
        columns = {}
        for name in self._needs.columns:
            values = self._of_tokens(name, rows, lengths) if ALIGNMENT[name] == "token" else self._of_rows(name, rows)
            if values is not None:
                columns[name] = values
        batch = collate(bins, columns, self._groups(rows))
        if self._shares:
            ids_T = batch.input_ids_1T[0].numpy()
            batch = batch._replace(shared=share(ids_T, batch.row_starts, least=_WORTH_SHARING))
        return self._with_media(batch, rows)

    def _with_media(self, batch: Batch, rows: NDArray[np.int64]) -> Batch:
        """The batch with the pictures of its rows."""
        if self.data.pixels is None:
            return batch
        return batch._replace(media=self.data.pixels.of_rows(self.reader.token_rows, rows, batch))

    def _of_rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        rewards = self.data.rewards
        if name == "advantage":
            assert rewards is not None
            return rewards.advantage[rows]
        if name == "group_tokens":
            assert rewards is not None
            return rewards.group_tokens()[rows]
        if name == "label_list":
            return label_lists(self.reader, rows, self._needs.head)
        return self.reader.columns(rows, [name])[name]

    def _of_tokens(self, name: str, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32] | None:
        if name == "step_label":
            return step_labels(self.reader, rows)
        if name in BY_TOKEN:
            assert self.data.rewards is not None
            return self.data.rewards.tokens(name, rows, lengths)
        role, _, kind = name.partition("_")
        if role == SAMPLER:
            assert self.data.rewards is not None
            return self.data.rewards.logp(rows, lengths)
        if role not in self.data.scores and name in self._needs.own:
            return None
        if kind in TOP:
            given = self.data.scores[role]
            assert isinstance(given, ScoresReader)
            return given.top(rows, lengths, kind)
        return self.data.scores[role].tokens(rows, lengths, kind)

    def _groups(self, rows: NDArray[np.int64]) -> Groups | None:
        if self._needs.group == "row":
            return None
        found = self.reader.columns(rows, ["pair_id", "side"])
        _, group = np.unique(found["pair_id"], return_inverse=True)
        return Groups(group.astype(np.int64), found["side"].astype(np.int64))
