"""What a reward model said of rollouts, as the answers of one more function."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.scores import ScoresReader
from postmill.stages.protocol import Input
from postmill.stages.reward.row import Answer


def scored(scores: Sequence[Input], rows: Sequence[dict[str, Any]]) -> dict[str, list[Answer]]:
    """The first number of each row, by the name of the scores; a rollout that failed has none.

    Raises ArtifactError (78) for scores of other rollouts, or of tokens.
    """
    found = {}
    for item in scores:
        assert item.path is not None
        reader = ScoresReader(item.path)
        if reader.row_ids() != [row["row_id"] for row in rows]:
            raise ArtifactError(
                f"--scores {item.name}={item.path}: of other rollouts than these; score these, all in one", MISMATCH
            )
        values = reader.values(np.arange(len(rows)))[:, 0]
        found[item.name] = [
            Answer(reason="rollout_failed") if row["error"] is not None else Answer(score=float(value))
            for row, value in zip(rows, values, strict=True)
        ]
    return found
