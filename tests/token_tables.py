"""Tokens artifacts and streams made by hand, for tests of whatever reads them."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from postmill.io.ledger import LEDGER, Ledger
from postmill.io.manifest import MANIFEST, Counts, Manifest, list_files
from postmill.io.schemas import TOKENS_V1
from postmill.io.table import StreamHeader, TableWriter


def row(ids: Sequence[int], spans: Sequence[tuple[int, int, float]] | None = None, **columns: Any) -> dict[str, Any]:
    """One row of TOKENS_V1. Without `spans` every token but the first has weight 1. Token 0 never counts as trained."""
    if spans is None:
        spans = [(1, len(ids), 1.0)] if len(ids) > 1 else []
    counts = [(max(end - max(start, 1), 0), weight) for start, end, weight in spans]
    return {
        "row_id": None,
        "source": 0,
        "line": None,
        "input_ids": list(ids),
        "turns": [],
        "spans": [{"start": start, "end": end, "weight": weight} for start, end, weight in spans],
        "length": len(ids),
        "trained_tokens": sum(count for count, _ in counts),
        "weight_sum": float(sum(count * weight for count, weight in counts)),
    } | columns


def pair_id(name: str) -> bytes:
    """16 bytes from a name."""
    return hashlib.blake2b(name.encode(), digest_size=16).digest()


def to_batches(rows: Iterable[dict[str, Any]], batch_rows: int = 7) -> list[pa.RecordBatch]:
    """Batches of TOKENS_V1; `row_id` and `line` are filled in from the position where they are unset."""
    named = []
    for number, item in enumerate(rows, start=1):
        line = item["line"] or number
        identity = item["row_id"] or pair_id(f"{line}:{item['input_ids']}")
        named.append({name: item.get(name) for name in TOKENS_V1.names} | {"line": line, "row_id": identity})
    chunks = [named[at : at + batch_rows] for at in range(0, len(named), batch_rows)]
    return [pa.RecordBatch.from_pylist(chunk, schema=TOKENS_V1) for chunk in chunks]


def manifest(num_rows: int, digests: dict[str, str] | None = None) -> Manifest:
    """What tokenize would say of `num_rows` rows."""
    return Manifest(
        kind="tokens",
        stage="tokenize",
        stage_version=1,
        key=f"blake3:test{num_rows}",
        config={},
        counts=Counts(rows_in=num_rows, kept=num_rows),
        digests=digests or {"tokenizer": "blake3:aa"},
    )


def write_tokens(path: Path, batches: list[pa.RecordBatch], digests: dict[str, str] | None = None) -> Path:
    """A tokens artifact at `path`."""
    path.mkdir(parents=True)
    writer = TableWriter(path / "tokens.arrow", TOKENS_V1)
    for batch in batches:
        writer.write(batch)
    writer.close()
    Ledger(path / LEDGER).finish()
    made = manifest(writer.rows, digests)
    whole = Manifest(**{name: getattr(made, name) for name in made.__struct_fields__} | {"files": list_files(path)})
    (path / MANIFEST).write_bytes(whole.to_json())
    return path


def write_stream(sink: BinaryIO, batches: list[pa.RecordBatch]) -> None:
    """The same as a stream, with its trailer."""
    made = manifest(sum(batch.num_rows for batch in batches))
    writer = TableWriter(sink, TOKENS_V1, StreamHeader(kind="tokens", stage="tokenize", key=made.key))
    for batch in batches:
        writer.write(batch)
    writer.finish_stream(made, Ledger(None).to_ipc())


def random_rows(seed: int, num_rows: int, longest: int = 60) -> list[dict[str, Any]]:
    """Rows of 1 to `longest` tokens whose ids tell row and position: id = 1000 * row + position."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        length = int(rng.integers(2, longest + 1))
        start = int(rng.integers(1, length))
        end = int(rng.integers(start + 1, length + 1))
        spans = [(start, end, float(rng.choice([1.0, 0.5, 3.0])))]
        rows.append(row([1000 * number + i for i in range(length)], spans, channel=f"c{number % 3}"))
    return rows
