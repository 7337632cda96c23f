"""The ledger: what became of every row that was not passed on as it came.

Kept rows are only counted. The law `kept + truncated + dropped = rows_in` is checked before anything is committed.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from postmill.io.arrays import fixed, numbers, text
from postmill.io.errors import BAD_DATA, INTERNAL, StageError
from postmill.io.manifest import Counts
from postmill.io.schemas import LEDGER_V1
from postmill.io.table import TableReader, TableWriter

LEDGER = "ledger.arrow"
_FLUSH_ROWS = 8192
_NUMBERS = ("source", "line", "tokens_before", "tokens_after")


class Ledger:
    """Collects ledger rows and counts. With a path, rows go to disk as they come; without, they stay in memory."""

    def __init__(self, path: Path | None) -> None:
        self.counts = Counts()
        self._path = path
        self._writer: TableWriter | None = None
        self._batches: list[pa.RecordBatch] = []
        self._rows: list[dict[str, Any]] = []

    @property
    def is_used(self) -> bool:
        """Whether any row was told, kept or not."""
        return bool(self.counts.rows_in or self._rows)

    def keep(self, num_rows: int) -> None:
        """Count rows that are passed on unchanged."""
        self.counts.rows_in += num_rows
        self.counts.kept += num_rows

    def drop(self, row: dict[str, Any], reason: str) -> None:
        """Record that a row is not passed on. `row` holds the place columns of LEDGER_V1."""
        self._rows.append({**row, "action": "dropped", "reason": reason})
        if len(self._rows) >= _FLUSH_ROWS:
            self._flush()

    def add(self, batch: pa.RecordBatch) -> None:
        """Record a batch of LEDGER_V1. A row that is both masked and truncated has two lines and counts once."""
        if batch.num_rows == 0:
            return
        # pyarrow's group_by would load pandas; see io/arrays.py
        lines = Counter(zip(batch["action"].to_pylist(), batch["reason"].to_pylist(), strict=True))
        for (action, reason), count in sorted(lines.items()):
            if action == "dropped":
                self.counts.dropped[reason] = self.counts.dropped.get(reason, 0) + count
                self.counts.rows_in += count
            elif action == "truncated":
                self.counts.truncated += count
                self.counts.rows_in += count
            else:
                self.counts.masked += count
        if self._path is None:
            self._batches.append(batch)
            return
        if self._writer is None:
            self._writer = TableWriter(self._path, LEDGER_V1)
        self._writer.write(batch)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self.add(_to_batch(rows))

    def finish(self, max_dropped: float = 1.0) -> Counts:
        """Close the file and check the law.

        Raises StageError (70) if the ledger does not balance, (65) if more than the fraction `max_dropped` was dropped.
        """
        self._flush()
        if self._path is not None:
            writer = self._writer or TableWriter(self._path, LEDGER_V1)
            writer.close()
        counts = self.counts
        if not counts.is_balanced():
            raise StageError(
                f"ledger: {counts.rows_in} rows in, but {counts.kept} kept + {counts.truncated} truncated"
                f" + {counts.num_dropped} dropped; this is a bug of ours",
                INTERNAL,
            )
        if counts.num_dropped > max_dropped * counts.rows_in:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.dropped.items()))
            raise StageError(
                f"{counts.num_dropped} of {counts.rows_in} rows dropped ({reasons}), more than --max-dropped"
                f" {max_dropped:.2%}; mend the rows, or raise it",
                BAD_DATA,
            )
        return counts

    def to_ipc(self) -> bytes:
        """All rows as one Arrow IPC file, for a stream's trailer. Only for a ledger without a path."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, LEDGER_V1) as writer:
            for batch in self._batches:
                writer.write_batch(batch)
        return bytes(sink.getvalue())


def _to_batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    columns = {name: [row.get(name) for row in rows] for name in LEDGER_V1.names}
    counted = {name: numbers(columns[name], LEDGER_V1.field(name).type) for name in _NUMBERS}
    arrays = {
        "row_id": fixed(columns["row_id"], 16),
        "action": text(columns["action"]),
        "reason": text(columns["reason"]),
    } | counted
    return pa.RecordBatch.from_arrays([arrays[name] for name in LEDGER_V1.names], schema=LEDGER_V1)


def read_ledger(artifact: Path) -> pa.Table:
    """The ledger of an artifact; empty if it has none."""
    path = artifact / LEDGER
    if not path.exists():
        return LEDGER_V1.empty_table()
    return pa.Table.from_batches(list(TableReader(path, LEDGER_V1)), LEDGER_V1)
