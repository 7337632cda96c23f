"""Rows of benchmarks, from the files in which they are published."""

import csv
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.json_file import numbered_lines

Row = dict[str, Any]
_SPLITS = ("_train", "_dev", "_val", "_validation", "_test")


def read_rows(path: Path) -> list[Row]:
    """All rows of a jsonl, json, csv or parquet file, in order. Benchmarks are small: a file is read whole.

    Raises ArtifactError (65) for a file that cannot be read, or has no rows.
    """
    try:
        rows = _READERS.get(path.suffix.lower(), _json_lines)(path)
    except (ValueError, pa.ArrowException, csv.Error) as error:
        raise ArtifactError(f"{path}: {error}", BAD_DATA) from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ArtifactError(f"{path}: no rows in it; expected objects, as jsonl, json, csv or parquet", BAD_DATA)
    subject = path.stem
    for split in _SPLITS:
        subject = subject.removesuffix(split)
    return [{"subject": subject} | row for row in rows]


def _json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in numbered_lines(path.read_bytes()):
        try:
            rows.append(msgspec.json.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{path}:{number}: {error}", BAD_DATA) from None
    return rows


def _json(path: Path) -> list[Row]:
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    return list(msgspec.json.decode(data)) if data.lstrip().startswith(b"[") else _json_lines(path)


def _csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def _parquet(path: Path) -> list[Row]:
    import pyarrow.parquet as pq

    return list(pq.read_table(path).to_pylist())


_READERS = {".json": _json, ".csv": _csv, ".parquet": _parquet}
