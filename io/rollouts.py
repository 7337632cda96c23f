"""Reading rollouts: samples of prompts, several artifacts as one table."""

from typing import Any

import pyarrow as pa

from postmill.io.manifest import Artifact
from postmill.io.schemas import ROLLOUTS_V1
from postmill.io.table import TableReader

PROMPTS = "prompts.arrow"
ROLLOUTS = "rollouts.arrow"
REWARDS = "rewards.arrow"


def read_rollouts(artifacts: list[Artifact], columns: list[str]) -> list[dict[str, Any]]:
    """`columns` of all rows, in order, as Python values. Memory grows with what these columns hold."""
    rows: list[dict[str, Any]] = []
    for batch in rollout_batches(artifacts):
        rows += batch.select(columns).to_pylist()
    return rows


def rollout_batches(artifacts: list[Artifact]) -> list[pa.RecordBatch]:
    """All batches, memory-mapped, in the order of `read_rollouts`."""
    return [batch for artifact in artifacts for batch in TableReader(artifact.file(ROLLOUTS), ROLLOUTS_V1)]
