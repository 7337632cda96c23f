"""Standard input as a dataset, or as a stream of tokens to weigh again; the first bytes tell.

Rows are copied to a nameless temporary file first (in TMPDIR; gone when the process is). The content key needs their
digest before the work begins, and counts, mixes and duplicates read rows more than once. Memory stays small either way.
"""

import functools
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from postmill.io.errors import CUT_STREAM, MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.schemas import TOKENS_V1
from postmill.io.table import StreamReader, is_stream_schema
from postmill.stages.tokenize.files import Kind
from postmill.stages.tokenize.sniff import kind_of_file

_ARROW_STREAM = b"\xff\xff\xff\xff"
_COPY_BYTES = 1 << 20
_MAX_SCHEMA_BYTES = 1 << 26


class Rows(NamedTuple):
    """Rows that came in, as a file."""

    path: Path
    kind: Kind


@functools.cache  # can be read once only; the runner wants its digest, and the stage its rows
def open_stdin() -> StreamReader | Rows:
    """A stream of tokens, or rows: JSON Lines or a JSON list (also compressed), Parquet, Arrow.

    Raises ConfigError (2) if it is a terminal, ArtifactError: (76) an Arrow stream was cut before its schema, (78) it
    is a stream of another kind.
    """
    if sys.stdin.isatty():
        raise ConfigError("stdin: a terminal, expected rows; pipe them in, or give a file", USAGE)
    source = os.fdopen(os.dup(0), "rb", buffering=0)
    head = _read_exactly(source, 8)
    if head.startswith(_ARROW_STREAM):
        head += _read_exactly(source, min(int.from_bytes(head[4:8], "little"), _MAX_SCHEMA_BYTES))
        if is_stream_schema(_schema(head)):
            return _tokens(io.BufferedReader(_Rejoined(head, source), _COPY_BYTES))
    file = tempfile.TemporaryFile(prefix="postmill-")  # noqa: SIM115  # lives as long as the process
    file.write(head)
    shutil.copyfileobj(source, file, _COPY_BYTES)
    file.flush()
    _OPEN.append(file)
    path = Path(f"/proc/self/fd/{file.fileno()}")
    return Rows(path, kind_of_file(path, "stdin", None) or Kind("jsonl"))


_OPEN: list[BinaryIO] = []
"""A file without a name lasts as long as it is open."""


def _schema(head: bytes) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.BufferReader(head))
    except (pa.ArrowException, OSError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise ArtifactError(f"stdin: the stream was cut before its schema ({what})", CUT_STREAM) from error


def _tokens(source: BinaryIO) -> StreamReader:
    stream = StreamReader(source, TOKENS_V1)
    if stream.header.kind != "tokens":
        raise ArtifactError(f"stdin: a stream of {stream.header.kind}, expected rows or tokens", MISMATCH)
    return stream


def _read_exactly(source: io.RawIOBase, size: int) -> bytes:
    """`size` bytes, or fewer at the end."""
    parts = []
    while size > 0 and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class _Rejoined(io.RawIOBase):
    """What was read already, then the rest."""

    def __init__(self, head: bytes, rest: io.RawIOBase) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        if len(self._head):
            count = min(len(view), len(self._head))
            view[:count] = self._head[:count]
            self._head = self._head[count:]
            return count
        return self._rest.readinto(view) or 0
