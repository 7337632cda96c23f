"""What a file is, by its first bytes: they tell where its name does not, and they are right where the two differ."""

import bz2
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from postmill.io.errors import BAD_DATA, REFUSED, ArtifactError
from postmill.io.json_file import NOT_JSON
from postmill.stages.tokenize.files import Kind

HEAD_BYTES = 1 << 16
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
_TABLES = {b"PAR1": "parquet", b"ARROW1\x00\x00": "arrow", b"\xff\xff\xff\xff": "arrow"}
_OTHERS = (
    (b"PK\x03\x04", "a zip archive (.xlsx files are one): unpack it, or save the sheet as .csv"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it"),
    (b"\x04\x22\x4d\x18", "compressed with lz4: unpack it, or compress it with zstd"),
    (b"%PDF-", "a PDF: extract its text"),
    (b"SQLite format 3\x00", "an SQLite database: export the table as .csv or .jsonl"),
    (b"Obj\x01", "an Avro file: save it as Parquet"),
    (b"ORC", "an ORC file: save it as Parquet"),
    (b"\x89HDF\r\n", "an HDF5 file: save it as Parquet"),
    (b"\xff\xfe", "UTF-16 text: convert it with `iconv -f utf-16 -t utf-8`"),
    (b"\xfe\xff", "UTF-16 text: convert it with `iconv -f utf-16 -t utf-8`"),
    (b"version https://git-lfs", "a Git LFS pointer and not the data: run `git lfs pull`"),
    (b"<!doctype html", "a web page and not data: look at it in a browser, and download again"),
    (b"<html", "a web page and not data: look at it in a browser, and download again"),
)
"""Beginnings, in lower case where they are words, of what is not read, and what to do."""


@contextlib.contextmanager
def open_compressed(path: Path, compression: str) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The bytes of a file, decompressed, and a function that tells how many of its own bytes were read."""
    if compression == "zstd":
        import pyarrow as pa

        with pa.OSFile(str(path), "rb") as packed, pa.CompressedInputStream(packed, "zstd") as file:
            yield file, packed.tell
        return
    with path.open("rb") as raw:
        if not compression:
            yield raw, raw.tell
            return
        openers: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
        with openers[compression](raw, "rb") as file:
            yield file, raw.tell


def kind_of_file(path: Path, name: str, named: Kind | None) -> Kind | None:
    """How to read a file: by its first bytes where they tell, else as `named`.

    Only tables, compressed files and JSON tell. Raises ArtifactError (65, a pickle 77) for what is not read at all.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    compression = _first(_COMPRESSIONS, head)
    if compression:
        head = _decompressed(path, compression)
    table = _first(_TABLES, head)
    if table and compression:
        raise ArtifactError(f"{name}: {table} inside {compression}; unpack it first", BAD_DATA)
    if table:
        return Kind(table)
    _refuse(head, name)
    kind = _json(head.removeprefix(_BYTE_ORDER_MARK).lstrip(), named)
    if kind:
        return Kind(kind, compression)
    if compression:
        return Kind(named.format if named else "jsonl", compression)
    return named


def _first(marks: dict[bytes, str], head: bytes) -> str:
    return next((name for mark, name in marks.items() if head.startswith(mark)), "")


def _decompressed(path: Path, compression: str) -> bytes:
    """The first bytes, as far as they can be had: what is damaged is for the reader to say."""
    head = b""
    try:
        with open_compressed(path, compression) as (file, _):
            while len(head) < HEAD_BYTES and (block := file.read(HEAD_BYTES - len(head))):
                head += block
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        pass
    return head


def _refuse(head: bytes, name: str) -> None:
    start = head[:64].lower()
    for mark, what in _OTHERS:
        if start.startswith(mark.lower()):
            raise ArtifactError(f"{name}: is {what}", BAD_DATA)
    if head[257:262] == b"ustar":
        raise ArtifactError(f"{name}: is a tar archive: unpack it", BAD_DATA)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ArtifactError(f"{name}: is a pickle, which can run any program; save the rows as .jsonl", REFUSED)


def _json(text: bytes, named: Kind | None) -> str:
    """`jsonl` for a whole object on the first line, `json` for a list or values over several lines, or nothing."""
    if named is not None and named.format == "text":
        return ""
    line, newline, rest = text.partition(b"\n")
    if line.startswith(b"{"):
        if _is_whole(line):
            return "jsonl"
        return "json" if newline and _goes_on(line.rstrip(), rest.lstrip()) else ""
    if line.startswith(b"["):
        # one list on each line is JSON Lines, of rows that are not objects
        lines = bool(rest.strip()) and _is_whole(line)
        after = line[1:].lstrip() + rest.lstrip()
        looks_right = after[:1] in (b"{", b"]", b"[", b'"') or named is None or named.format in ("json", "jsonl")
        return "jsonl" if lines else ("json" if looks_right else "")
    return ""


def _is_whole(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except NOT_JSON:
        return False
    return True


def _goes_on(line: bytes, rest: bytes) -> bool:
    """Whether an object that opens on `line` continues on the next: printed for people, not a damaged line."""
    if line.endswith((b"[", b"{", b":")):
        return True
    return line.endswith(b",") and rest.startswith((b'"', b"]", b"}"))
