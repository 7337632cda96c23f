"""Arrow tables on disk and in pipes, checked on every open.

Damaged Arrow crashes or lies when it is read without validation, and a cut stream looks complete. So each batch
carries its number and the XXH3 of its bytes, every batch read is validated and compared, and a stream ends in a
trailer: a batch of no rows whose metadata holds the row count and the digest of all before. Without one it was cut.
"""

import contextlib
import fcntl
import io
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import xxhash

from postmill.io.arrays import empty_batch
from postmill.io.digest import canonical_json
from postmill.io.errors import BAD_DATA, CUT_STREAM, NO_INPUT, USAGE, ArtifactError, ConfigError
from postmill.io.manifest import Manifest, parse_manifest
from postmill.io.schemas import check_schema

_HEADER = b"postmill"
_BUFFER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError, ValueError)
"""What pyarrow raises for bytes that are no Arrow: its own errors, and ValueError for names that are no UTF-8."""


class StreamHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stream says of itself before its first row. `key` is the content key of the work that makes it."""

    format: int = 1
    kind: str
    stage: str
    key: str


class Trailer(msgspec.Struct, frozen=True):
    """What a stream says of itself at its end: the maker's manifest (no files), and its ledger as Arrow IPC bytes."""

    rows: int
    digest: str
    manifest: Manifest
    ledger: bytes
    side: bytes
    """The maker's `run.json`, or nothing."""


def batch_digest(batch: pa.RecordBatch) -> bytes:
    """XXH3-128 of the batch's IPC message, as 32 hex digits. The message holds every value and no custom metadata."""
    return xxhash.xxh3_128_hexdigest(memoryview(batch.serialize())).encode()


def is_stream_schema(schema: pa.Schema) -> bool:
    """Whether a stage of ours says it wrote the stream that begins so."""
    return _HEADER in (schema.metadata or {})


class _DigestedFile(io.RawIOBase):
    """A new file, and the digest of what has been written to it: cheaper than reading it again at the end."""

    def __init__(self, path: Path) -> None:
        from blake3 import blake3

        self._file = path.open("wb", buffering=0)
        self._hasher = blake3()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = self._file.write(data)
        self._hasher.update(memoryview(data)[:size])
        return size

    def close(self) -> None:
        self._file.close()
        super().close()

    def digest(self) -> str:
        return f"blake3:{self._hasher.hexdigest()}"


class TableWriter:
    """Writes record batches to an Arrow IPC file or stream, numbering and digesting each; counts `rows`."""

    def __init__(self, sink: Path | BinaryIO, schema: pa.Schema, header: StreamHeader | None = None) -> None:
        self.schema, self.rows = schema, 0
        self.path = sink if isinstance(sink, Path) else None
        self.digest = ""
        """Of the whole file, once it is closed; of a stream none."""
        self._seq = 0
        self._all = xxhash.xxh3_128()
        self._file: io.BufferedWriter | None = None
        if isinstance(sink, Path):
            self._file = io.BufferedWriter(_DigestedFile(sink), _BUFFER_BYTES)
            self._writer = pa.ipc.new_file(self._file, schema)
        else:
            metadata = {_HEADER: canonical_json(header)} if header else None
            self._writer = pa.ipc.new_stream(sink, schema.with_metadata(metadata))

    def write(self, batch: pa.RecordBatch, digest: bytes | None = None) -> None:
        """Append `batch`; its columns must be those of the schema, in order. Empty batches are skipped.

        digest: its `batch_digest`, where the caller has just checked it.
        """
        if batch.num_rows == 0:
            return
        batch = pa.RecordBatch.from_arrays(batch.columns, schema=self.schema)
        digest = digest or batch_digest(batch)
        self._all.update(digest)
        self._writer.write_batch(batch, custom_metadata={"seq": str(self._seq), "xxh3": digest})
        self._seq += 1
        self.rows += batch.num_rows

    def finish_stream(self, manifest: Manifest, ledger: bytes, side: bytes = b"") -> None:
        """Write the trailer and close. Only for streams. `side`: where the inputs lie, as `run.json` would say it."""
        self._writer.write_batch(
            empty_batch(self.schema),
            custom_metadata={
                b"final": b"1",
                b"rows": str(self.rows).encode(),
                b"digest": self._all.hexdigest().encode(),
                b"manifest": manifest.to_json(),
                b"ledger": ledger,
                b"run": side,
            },
        )
        self.close()

    def close(self) -> None:
        """Write the footer or end mark."""
        self._writer.close()
        if self._file is not None and not self._file.closed:
            raw = self._file.raw
            assert isinstance(raw, _DigestedFile)
            self._file.close()
            self.digest = raw.digest()


def _checked(read: Callable[[], Any], place: str, seq: int) -> tuple[pa.RecordBatch, dict[bytes, bytes]]:
    """One batch with its metadata, validated and compared with its digest. Raises ArtifactError (65)."""
    try:
        item = read()
        item.batch.validate(full=True)
    except _DAMAGE as error:
        what = str(error).splitlines()[0]
        raise ArtifactError(f"{place}: batch {seq} is damaged ({what}); make it again", BAD_DATA) from error
    batch: pa.RecordBatch = item.batch
    metadata = dict(item.custom_metadata.items()) if item.custom_metadata is not None else {}
    wanted = metadata.get(b"xxh3")
    if wanted is not None and wanted != batch_digest(batch):
        raise ArtifactError(f"{place}: batch {seq} differs from its digest; make it again", BAD_DATA)
    return batch, metadata


class TableReader:
    """A memory-mapped Arrow IPC file. Batches are checked the first time they are read, unless this process has just
    `written` them.

    Raises ArtifactError if it cannot be opened (66), is no Arrow file or damaged (65), or lacks a column (78).
    """

    def __init__(self, path: Path, schema: pa.Schema | None = None, *, written: bool = False) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = pa.ipc.open_file(pa.py_buffer(self._map))
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file", NO_INPUT) from None
        except _DAMAGE as error:  # an empty file cannot be mapped: ValueError
            raise ArtifactError(f"{path}: not an Arrow file ({str(error).splitlines()[0]})", BAD_DATA) from error
        if schema is not None:
            check_schema(self._file.schema, schema, path)
        self._seen = set(range(self.num_batches)) if written else set()

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema

    @property
    def num_batches(self) -> int:
        return int(self._file.num_record_batches)

    def batch(self, index: int) -> pa.RecordBatch:
        """Batch `index`, zero-copy from the map."""
        if index in self._seen:
            return self._file.get_batch(index)
        read = self._file.get_batch_with_custom_metadata
        batch, _ = _checked(lambda: read(index), str(self.path), index)
        self._seen.add(index)
        return batch

    def rows_in(self, index: int) -> int:
        """How many rows batch `index` has, from its header alone: no data is read or checked. ArtifactError (65)."""
        try:
            return int(self._file.get_batch(index).num_rows)
        except _DAMAGE as error:
            what = str(error).splitlines()[0]
            raise ArtifactError(f"{self.path}: batch {index} is damaged ({what}); make it again", BAD_DATA) from error

    def release(self) -> None:
        """Give the pages read so far back to the system. A pass over a file larger than memory does so as it goes;
        batches still held stay valid, their pages are read again when touched.
        """
        self._map.madvise(mmap.MADV_DONTNEED)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (self.batch(index) for index in range(self.num_batches))


class StreamReader:
    """Rows from a pipe. Iterate to the end; then `trailer` is set. A stream that ends without one raises (76)."""

    def __init__(self, source: BinaryIO, schema: pa.Schema | None = None, place: str = "stdin") -> None:
        self.place, self.rows = place, 0
        self.digest: bytes | None = None
        """`batch_digest` of the last batch, checked."""
        self.trailer: Trailer | None = None
        self._all = xxhash.xxh3_128()
        try:
            self._stream = pa.ipc.open_stream(source)
        except _DAMAGE as error:
            what = str(error).splitlines()[0]
            raise ArtifactError(f"{place}: the stream was cut before its schema ({what})", CUT_STREAM) from error
        if not is_stream_schema(self._stream.schema):
            raise ArtifactError(f"{place}: not a Postmill stream; pipe the output of a stage", BAD_DATA)
        try:
            self.header = msgspec.json.decode(self._stream.schema.metadata[_HEADER], type=StreamHeader)
        except msgspec.ValidationError as error:
            raise ArtifactError(f"{place}: stream header {error}", BAD_DATA) from error
        if schema is not None:
            check_schema(self._stream.schema, schema, place)

    @property
    def schema(self) -> pa.Schema:
        return self._stream.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        seq = 0
        while True:
            try:
                batch, metadata = _checked(self._stream.read_next_batch_with_custom_metadata, self.place, seq)
            except StopIteration:
                raise self._cut("it ended without its trailer") from None
            except ArtifactError as error:
                # A cut inside a message reads as damage; either way nothing may be committed.
                raise self._cut(str(error)) from error
            if metadata.get(b"final") == b"1":
                self.trailer = self._check_trailer(metadata)
                return
            if metadata.get(b"seq") != str(seq).encode():
                raise self._cut(f"batch {seq} is missing")
            self.digest = metadata.get(b"xxh3")
            self._all.update(self.digest or b"")
            self.rows += batch.num_rows
            seq += 1
            yield batch

    def _check_trailer(self, metadata: dict[bytes, bytes]) -> Trailer:
        if metadata[b"rows"] != str(self.rows).encode() or metadata[b"digest"] != self._all.hexdigest().encode():
            raise self._cut(f"{self.rows} rows came, its trailer says {metadata[b'rows'].decode()}")
        manifest = parse_manifest(metadata[b"manifest"], f"{self.place} (trailer)")
        return Trailer(self.rows, self._all.hexdigest(), manifest, metadata[b"ledger"], metadata.get(b"run", b""))

    def _cut(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.place}: the stream was cut: {why}; run the stage before it again", CUT_STREAM)


def stdin_stream(schema: pa.Schema) -> StreamReader:
    """The stream on standard input. Raises ConfigError (2) if that is a terminal."""
    if sys.stdin.isatty():
        raise ConfigError("stdin: a terminal, expected a stream; pipe a stage into this one", USAGE)
    _widen(0)
    return StreamReader(os.fdopen(os.dup(0), "rb", buffering=_BUFFER_BYTES), schema)


def stdout_sink() -> BinaryIO:
    """Standard output for a stream. Raises ConfigError (2) if that is a terminal."""
    if sys.stdout.isatty():
        raise ConfigError("stdout: a terminal, and the output is binary; pipe it, or pass -o DIR", USAGE)
    _widen(1)
    return os.fdopen(os.dup(1), "wb", buffering=_BUFFER_BYTES)


def _widen(pipe: int) -> None:
    """Let a pipe hold a megabyte, as far as the system allows: its two ends then wait for each other less often."""
    with contextlib.suppress(OSError):  # no pipe, or more than this user's share
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _BUFFER_BYTES)
