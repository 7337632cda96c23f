"""Every file format as a stream of JSON Lines, in pieces of a bounded size.

jsonl passes untouched. Other formats give one line a record, so that line n is record n: items of a JSON list, rows of
a table. Nulls of Parquet and Arrow are left out at every depth, because columnar files pad all structs to the same
members; empty CSV cells are left out too, and all others are text.
"""

import csv
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from postmill._native import MAX_LINE_BYTES, JsonSplitter, batch_to_lines
from postmill.io.errors import BAD_DATA, IO_ERROR, ArtifactError
from postmill.stages.tokenize.files import Kind

if TYPE_CHECKING:
    import pyarrow as pa

READ_BYTES = 1 << 20
# Rows that are converted at a time; a chat of 100 kB makes 100 MB of text.
BATCH_ROWS = 1024


def read_lines(path: Path, kind: Kind, name: str) -> Iterator[bytes]:
    """The file as JSON Lines. `name` is what errors call it. Raises ArtifactError."""
    try:
        if kind.format == "parquet":
            yield from _parquet(path, name)
        elif kind.format == "arrow":
            yield from _arrow(path, name)
        else:
            with _opened(path, kind.compression) as file:
                yield from _text_format(file, kind.format, name)
    except (EOFError, zlib.error) as fault:
        raise ArtifactError(f"{name}: {_lower(fault)}; the file was cut or damaged, get it again", BAD_DATA) from fault
    except OSError as fault:
        # gzip.BadGzipFile and Arrow's read errors are OSErrors without an errno
        if fault.errno is None:
            raise ArtifactError(
                f"{name}: {_lower(fault)}; the file was cut or damaged, get it again", BAD_DATA
            ) from fault
        raise ArtifactError(f"{name}: {fault.strerror}", IO_ERROR) from fault


def _lower(fault: BaseException) -> str:
    text = " ".join(str(fault).split())
    return text[:1].lower() + text[1:160]


def _opened(path: Path, compression: str) -> BinaryIO:
    if compression == "gzip":
        import gzip

        return gzip.open(path, "rb")  # type: ignore[return-value]  # a GzipFile reads as any binary file
    if compression == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")  # type: ignore[no-any-return]
    return path.open("rb")


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(READ_BYTES):
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
        raise ArtifactError(f"{name}: {fault}", BAD_DATA) from fault


def _is_json_lines(text: bytes) -> bool:
    """Whether the first line is an object by itself."""
    line = text.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    if not line.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True


def _text(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Each line is a text of its own; blank ones stay blank, so that numbers are the file's."""
    out = bytearray()
    for number, line in enumerate(io.BufferedReader(file, READ_BYTES), 1):  # type: ignore[type-var]
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
        raise ArtifactError(f"{name}:{rows.line_num}: {_lower(fault)}; check the quotes", BAD_DATA) from fault
    except UnicodeDecodeError as fault:
        raise ArtifactError(_not_utf8(f"{name}:{rows.line_num + 1}", fault), BAD_DATA) from fault
    yield bytes(out)


def _parquet(path: Path, name: str) -> Iterator[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield _batch_lines(batch, name)
    except pa.ArrowInvalid as fault:
        raise OSError(str(fault)) from fault


def _arrow(path: Path, name: str) -> Iterator[bytes]:
    """An IPC file or stream; Feather version 2 is the former."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path), "r") as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                file = pa.ipc.open_file(source)
                batches: Iterator[pa.RecordBatch] = (file.get_batch(i) for i in range(file.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(source))
            for batch in batches:
                batch.validate(full=True)
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    yield _batch_lines(batch.slice(start, BATCH_ROWS), name)
    except pa.ArrowInvalid as fault:
        raise OSError(str(fault)) from fault


def _batch_lines(batch: "pa.RecordBatch", name: str) -> bytes:
    """JSON Lines of a batch; times and decimals, which JSON lacks, as Arrow spells them."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for field, column in zip(batch.schema, batch.columns, strict=True):
        spelled = pa.types.is_temporal(field.type) or pa.types.is_decimal(field.type)
        columns[field.name] = column.cast(pa.string()) if spelled else column
    if len(columns) < batch.num_columns:
        raise ArtifactError(f"{name}: two columns have the same name; rename one of them", BAD_DATA)
    try:
        return batch_to_lines(pa.RecordBatch.from_pydict(columns))
    except ValueError as fault:
        raise ArtifactError(f"{name}: {fault}", BAD_DATA) from fault
