"""Every file format as a stream of JSON Lines, in pieces of a bounded size.

jsonl passes untouched. Other formats give one line a record, so that line n is record n: items of a JSON list, rows of
a table. Nulls of Parquet and Arrow are left out at every depth, because columnar files pad all structs to the same
members; empty CSV cells are left out too, and all others are text.
"""

import csv
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from postmill._native import MAX_LINE_BYTES, JsonSplitter
from postmill.io.errors import BAD_DATA, IO_ERROR, ArtifactError
from postmill.io.json_file import NOT_JSON
from postmill.stages.tokenize.files import Kind
from postmill.stages.tokenize.reading import GET_AGAIN, CutFile, Reading, lower, whole_lines
from postmill.stages.tokenize.sniff import open_compressed

READ_BYTES = 1 << 20


def read_lines(path: Path, kind: Kind, name: str, how: Reading) -> Iterator[bytes]:
    """The file as JSON Lines. `name` is what errors call it. Raises ArtifactError."""
    lines = _read_lines(path, kind, name, how)
    return whole_lines(lines, name, how) if how.keep_cut else lines


def _read_lines(path: Path, kind: Kind, name: str, how: Reading) -> Iterator[bytes]:
    try:
        if kind.format in ("parquet", "arrow"):
            from postmill.stages.tokenize.tables import read_arrow, read_parquet  # Arrow takes 40 ms to load

            yield from (read_parquet if kind.format == "parquet" else read_arrow)(path, name, how)
        else:
            size = max(1, path.stat().st_size)
            with open_compressed(path, kind.compression) as (file, position):
                for block in _text_format(file, kind.format, name):
                    how.at = position() / size
                    yield block
    except (EOFError, zlib.error, lzma.LZMAError) as fault:
        raise CutFile(f"{name}: {lower(fault)}; {GET_AGAIN}", BAD_DATA) from fault
    except OSError as fault:
        # gzip.BadGzipFile and Arrow's read errors are OSErrors without an errno
        if fault.errno is None:
            raise CutFile(f"{name}: {lower(fault)}; {GET_AGAIN}", BAD_DATA) from fault
        raise ArtifactError(f"{name}: {fault.strerror}", IO_ERROR) from fault


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    # one piece of a compressed file at a time: a longer read would lose what comes before the cut
    read = getattr(file, "read1", file.read)
    while block := read(READ_BYTES):
        yield block


def _text_format(file: BinaryIO, form: str, name: str) -> Iterator[bytes]:
    if form == "jsonl":
        yield from _blocks(file)
    elif form == "json":
        yield from _json(_blocks(file), name)
    elif form == "text":
        yield from _text(file, name)
    else:
        yield from _csv(file, "\t" if form == "tsv" else ",", name)


def _json(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """A list, or values one after another. What is JSON Lines by another name keeps its lines and their numbers."""
    first = b""
    for block in blocks:
        first += block
        if b"\n" in first or len(first) > MAX_LINE_BYTES:
            break
    if _is_json_lines(first):
        yield first
        yield from blocks
        return
    splitter = JsonSplitter()
    try:
        yield splitter.feed(first)
        for block in blocks:
            yield splitter.feed(block)
        yield splitter.finish()
    except ValueError as fault:
        refusal = CutFile if getattr(fault, "reason", "") == "truncated" else ArtifactError
        raise refusal(f"{name}: {fault}", BAD_DATA) from fault


def _is_json_lines(text: bytes) -> bool:
    """Whether the first line is an object by itself."""
    line = text.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    if not line.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(line)
    except NOT_JSON:
        return False
    return True


def _text(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Each line is a text of its own; blank ones stay blank, so that numbers are the file's."""
    out = bytearray()
    lines = io.BufferedReader(file, READ_BYTES)  # type: ignore[type-var]
    for number, line in enumerate(lines, 1):
        text = line.rstrip(b"\r\n")
        if number == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")
        if text.strip():
            try:
                out += msgspec.json.encode({"text": text.decode()})
            except UnicodeDecodeError as fault:
                raise ArtifactError(_not_utf8(f"{name}:{number}:{fault.start + 1}", fault), BAD_DATA) from fault
        out += b"\n"
        if len(out) >= READ_BYTES:
            yield bytes(out)
            out.clear()
    yield bytes(out)


def _not_utf8(place: str, fault: UnicodeDecodeError) -> str:
    byte = fault.object[fault.start]
    return f"{place}: byte 0x{byte:02x} is not UTF-8; convert the file, for example with `iconv -t utf-8`"


def _csv(file: BinaryIO, delimiter: str, name: str) -> Iterator[bytes]:
    """RFC 4180 with a header line; cells are text, however much they look like numbers."""
    csv.field_size_limit(MAX_LINE_BYTES)
    rows = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    out = bytearray()
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            twice = next(column for column in header if header.count(column) > 1)
            raise ArtifactError(
                f"{name}:1: column {twice!r} occurs twice in the header; rename one of the two", BAD_DATA
            )
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                place = f"{name}:{rows.line_num}: {len(row)} cells where the header has {len(header)}"
                marks = "tabs" if delimiter == "\t" else "commas"
                raise ArtifactError(f"{place}; quote cells that hold {marks}, quotes or line breaks", BAD_DATA)
            out += msgspec.json.encode({column: cell for column, cell in zip(header, row, strict=True) if cell})
            out += b"\n"
            if len(out) >= READ_BYTES:
                yield bytes(out)
                out.clear()
    except csv.Error as fault:
        yield bytes(out)
        refusal = CutFile if "end of data" in str(fault) else ArtifactError
        raise refusal(f"{name}:{rows.line_num}: {lower(fault)}; check the quotes", BAD_DATA) from fault
    except UnicodeDecodeError as fault:
        raise ArtifactError(_not_utf8(f"{name}:{rows.line_num + 1}", fault), BAD_DATA) from fault
    yield bytes(out)
