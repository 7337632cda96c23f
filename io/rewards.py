"""Reading rewards beside the rollouts they are of: what training needs to know of each sample.

Rows are named by their ordinals in the rollouts laid end to end, as in a packed artifact. A row that is left
out (dropped, or without an advantage) is dead: it has no advantage, and counts nowhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from postmill.io.arrays import to_numpy, validity
from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.manifest import Artifact, load_artifact
from postmill.io.rollouts import REWARDS, rollout_batches
from postmill.io.schemas import REWARDS_V1
from postmill.io.table import TableReader

BY_TOKEN = ("advantages", "returns", "values")
"""Columns that have an entry for each sampled token."""


class RewardsReader:
    """Rewards of rollouts, in their order."""

    def __init__(self, paths: Sequence[Path], rollouts: Sequence[Artifact]) -> None:
        """Raises ArtifactError (78) unless these are rewards of these very rollouts, sampled at one temperature."""
        self.artifacts, self.rollouts = [load_artifact(path, ("rewards",)) for path in paths], list(rollouts)
        self._check_rollouts()
        self._batches = rollout_batches(self.rollouts)
        self._starts = np.cumsum([0] + [batch.num_rows for batch in self._batches])
        self.advantage = self._read_advantages()
        """float64, by row: NaN for a dead one."""
        if len(self.advantage) != self._starts[-1]:
            raise self._of_others()
        self.temperature = self._one_temperature()
        """What the sampler divided logits by."""
        self.is_truncated = any(made.manifest.metrics.get("truncated") for made in self.rollouts)
        """Whether the sampler left tokens out (top-k, top-p, min-p): then log-probs are not those of its choices."""
        self._group_tokens: NDArray[np.float64] | None = None
        self._judged = [batch for made in self.artifacts for batch in TableReader(made.file(REWARDS), REWARDS_V1)]
        self._judged_starts = np.cumsum([0] + [batch.num_rows for batch in self._judged])

    def _check_rollouts(self) -> None:
        others = [made for made in self.rollouts if made.manifest.kind != "rollouts"]
        if others or not self.rollouts:
            place = f"{others[0].path}: is no rollouts artifact" if others else "a stream has no rollouts"
            raise ArtifactError(
                f"{place}, so {self.artifacts[0].path} cannot be its rewards; take both or none", MISMATCH
            )
        digests = [
            entry.digest for made in self.artifacts for entry in made.manifest.inputs if entry.port == "rollouts"
        ]
        if digests != [made.digest for made in self.rollouts]:
            raise self._of_others()

    def _of_others(self) -> ArtifactError:
        return ArtifactError(
            f"{self.artifacts[0].path}: rewards of other rollouts than {self.rollouts[0].path}; run `postmill reward`"
            " on these, or take those",
            MISMATCH,
        )

    def _read_advantages(self) -> NDArray[np.float64]:
        pieces = [np.empty(0, np.float64)]
        for made in self.artifacts:
            for batch in TableReader(made.file(REWARDS), REWARDS_V1):
                column = batch.column("advantage")
                is_kept = np.array(batch.column("kept").to_pylist(), np.bool_)
                pieces.append(np.where(validity(column) & is_kept, to_numpy(column), np.nan))
        return np.concatenate(pieces)

    def _one_temperature(self) -> float:
        temperatures = {float(made.manifest.metrics.get("temperature", 1.0)) for made in self.rollouts}
        if len(temperatures) > 1 or not min(temperatures) > 0:
            raise ArtifactError(
                f"{self.rollouts[0].path}: sampled at temperature "
                f"{', '.join(f'{t:g}' for t in sorted(temperatures))}; a step needs one temperature above 0",
                MISMATCH,
            )
        return temperatures.pop()

    def group_tokens(self) -> NDArray[np.float64]:
        """Sampled tokens of the live rows of each row's prompt, by row; 0 where there is none."""
        if self._group_tokens is None:
            prompts = np.concatenate([to_numpy(batch.column("prompt_id")) for batch in self._batches])
            tokens = np.concatenate([to_numpy(batch.column("trained_tokens")) for batch in self._batches])
            _, group = np.unique(prompts, return_inverse=True)
            alive = np.where(np.isnan(self.advantage), 0.0, tokens)
            self._group_tokens = np.bincount(group, alive)[group].astype(np.float64)
        return self._group_tokens

    def logp(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the engine said of each token when it sampled it, rows end to end; NaN where it said nothing.

        lengths: tokens of each row.
        """
        return self._by_token("logp", self._batches, self._starts, rows, lengths)

    def has(self, name: str) -> bool:
        """Whether a row has the column `name` of `BY_TOKEN`."""
        return any(batch.column(name).null_count < batch.num_rows for batch in self._judged)

    def tokens(self, name: str, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """A column of `BY_TOKEN`, rows end to end, NaN at tokens that were not sampled; None if no row has it."""
        if not self.has(name):
            return None
        return self._by_token(name, self._judged, self._judged_starts, rows, lengths)

    def _by_token(
        self,
        name: str,
        batches_of: Sequence[Any],
        starts: NDArray[np.int64],
        rows: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        pieces = []
        batches = np.searchsorted(starts, rows, side="right") - 1
        for row, number, length in zip(rows.tolist(), batches.tolist(), lengths.tolist(), strict=True):
            at = row - int(starts[number])
            piece = np.full(length, np.nan, np.float32)
            column = batches_of[number].column(name)
            if column[at].is_valid:
                offsets, known = to_numpy(column.offsets), column.values
                first, end = int(offsets[at]), int(offsets[at + 1])
                values = np.where(validity(known)[first:end], to_numpy(known)[first:end], np.nan)
                runs = self._runs(row)
                places = np.concatenate([np.empty(0, np.int64)] + [np.arange(r["start"], r["end"]) for r in runs])
                piece[places] = values
            pieces.append(piece)
        return np.concatenate(pieces)

    def _runs(self, row: int) -> list[dict[str, int]]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        runs: list[dict[str, int]] = self._batches[number].column("sampled")[row - int(self._starts[number])].as_py()
        return runs
