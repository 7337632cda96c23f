"""What encoding and weighing again have in common at the end: sums for the manifest, and data that is refused."""

import math
from typing import Any

import pyarrow as pa

from postmill.io.arrays import to_numpy
from postmill.io.errors import BAD_DATA, ArtifactError, StageError
from postmill.io.table import TableWriter
from postmill.stages.protocol import Out

TOKENS = "tokens.arrow"
NOTHING = "nothing_to_train"
"""Why rows without a trained token are dropped, in the ledger."""


def close(writer: TableWriter, out: Out) -> None:
    """End a table; a stream ends with its trailer, which the runner writes."""
    if out.sink is None:
        writer.close()


def check_trained(out: Out, place: str, remedy: str = "mend them") -> None:
    """Refuse data with no rows, or where a rule silences most of them: the mask is hardly what was meant."""
    counts = out.ledger.counts
    if counts.rows_in == 0:
        raise ArtifactError(f"{place}: no rows; check the file and --columns", BAD_DATA)
    if counts.num_dropped == counts.rows_in:
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.dropped.items()))
        raise StageError(f"{place}: nothing left of {counts.rows_in} rows ({reasons}); {remedy}", BAD_DATA)
    untrained = counts.dropped.get(NOTHING, 0)
    if untrained > counts.rows_in / 2:
        raise StageError(
            f"{untrained} of {counts.rows_in} rows have nothing to train on;"
            " check --loss-scale, --max-length and the rows' loss",
            BAD_DATA,
        )


class Totals:
    """Sums over chunks, for the manifest."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = dict.fromkeys(
            ("rows", "tokens", "trained_tokens", "encode_calls", "straddles", "special_look_alikes"), 0
        )
        self.weight_sum = 0.0
        self.histogram: list[int] = []
        self.closing_ids: set[int] = set()
        self.columns_seen: set[str] = set()
        """Of the columns that `columns` renames and `drop` leaves out, those that some row has."""
        self.columns_unused: set[str] = set()
        """Columns that nobody read, a hundred of each chunk at most."""

    def add(self, rows: pa.RecordBatch, counts: dict[str, Any]) -> None:
        """Add a chunk, in the order of the input."""
        self.closing_ids.update(counts.pop("closing_ids", []))
        self.columns_seen.update(counts.pop("columns_seen", []))
        self.columns_unused.update(counts.pop("columns_unused", []))
        histogram = counts.pop("length_histogram", [])
        self.histogram += [0] * (len(histogram) - len(self.histogram))
        for bucket, number in enumerate(histogram):
            self.histogram[bucket] += number
        for name, number in counts.items():
            self.sums[name] = self.sums.get(name, 0) + number
        self.weight_sum += math.fsum(to_numpy(rows["weight_sum"]).tolist())

    def metrics(self) -> dict[str, Any]:
        """`length_histogram`: rows by the largest power of two not above their length. `stop_ids`: what ends a turn."""
        sums = {name: number for name, number in sorted(self.sums.items()) if name != "rows_in"}
        tokens = max(1, sums["tokens"])
        return {
            **sums,
            "weight_sum": self.weight_sum,
            "trained_fraction": sums["trained_tokens"] / tokens,
            "length_histogram": {str(2**k): number for k, number in enumerate(self.histogram) if number},
            "stop_ids": sorted(self.closing_ids),
        }
