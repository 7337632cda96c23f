"""Shards of one tokenization, made by several processes or machines, and read by the run that commits them.

Shard I of N encodes every Nth chunk and writes it, with its ledger and counts, into a file beside the output. The run
without `--shard` goes through all chunks as ever, and takes what it finds there in place of encoding: so its artifact
is that of one machine, to the byte, whichever shards are there.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from postmill.io.commit import fsync_dir
from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.json_file import NOT_JSON
from postmill.io.schemas import LEDGER_V1
from postmill.io.table import batch_digest

Encoded = tuple[pa.RecordBatch, pa.RecordBatch, dict[str, Any]]
"""Rows, ledger and counts of a chunk."""
_KEY_LETTERS = 16


def part_path(work: Path, key: str, shard: tuple[int, int]) -> Path:
    """The file of a shard of the work that `key` names."""
    return work / f"shard-{shard[0]}-of-{shard[1]}.{key.rpartition(':')[2][:_KEY_LETTERS]}.arrow"


class PartWriter:
    """Writes a shard: whole under its name, or not there."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._schema = path, schema
        self._beside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        self._file = self._beside.open("wb")
        self._writer = pa.ipc.new_file(self._file, schema)

    def write(self, number: int, encoded: Encoded) -> None:
        """Add a chunk, which may have no rows."""
        rows, ledger, counts = encoded
        rows = pa.RecordBatch.from_arrays(rows.columns, schema=self._schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, LEDGER_V1) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(ledger.columns, schema=LEDGER_V1))
        metadata = {
            b"chunk": str(number).encode(),
            b"xxh3": batch_digest(rows),
            b"counts": msgspec.json.encode(counts),
            b"ledger": bytes(sink.getvalue()),
        }
        self._writer.write_batch(rows, custom_metadata=metadata)

    def commit(self) -> None:
        """Put the file in its place."""
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._beside.replace(self._path)
        fsync_dir(self._path.parent)

    def abandon(self) -> None:
        """Leave nothing."""
        self._file.close()
        self._beside.unlink(missing_ok=True)


class Parts:
    """Chunks that shards have encoded, by number."""

    def __init__(self, work: Path | None, key: str) -> None:
        letters = key.rpartition(":")[2][:_KEY_LETTERS]
        self.paths = sorted(work.glob(f"shard-*-of-*.{letters}.arrow")) if work is not None else []
        self._places: dict[int, tuple[Path, Any, int]] = {}
        for path in self.paths:
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
                for index in range(reader.num_record_batches):
                    _, metadata = reader.get_batch_with_custom_metadata(index)
                    self._places[int(metadata[b"chunk"])] = (path, reader, index)
            except (pa.ArrowException, KeyError, ValueError) as error:
                raise _damaged(path) from error

    def read(self, number: int) -> Encoded | None:
        """A chunk that some shard has encoded. Raises ArtifactError (65) if its file is damaged."""
        if number not in self._places:
            return None
        path, reader, index = self._places[number]
        try:
            rows, metadata = reader.get_batch_with_custom_metadata(index)
            rows.validate(full=True)
            ledger = pa.ipc.open_stream(metadata[b"ledger"]).read_next_batch()
            counts: dict[str, Any] = msgspec.json.decode(metadata[b"counts"])
        except (pa.ArrowException, KeyError, StopIteration, *NOT_JSON) as error:
            raise _damaged(path) from error
        if batch_digest(rows) != metadata[b"xxh3"]:
            raise _damaged(path)
        return rows, ledger, counts

    def remove(self) -> None:
        """Remove the files, once the artifact is there."""
        for path in self.paths:
            path.unlink(missing_ok=True)
        if self.paths:
            with contextlib.suppress(OSError):  # something else lies there
                self.paths[0].parent.rmdir()


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: this shard is damaged; remove it and make it again", BAD_DATA)
