"""Parquet and Arrow tables as JSON Lines."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from postmill._native import batch_to_lines, is_column
from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.stages.tokenize.arrow_values import NoText, bytes_as_text, check_has_array, to_json_types
from postmill.stages.tokenize.reading import GET_AGAIN, CutFile, Reading, lower

# Rows that are converted at a time; a chat of 100 kB makes 100 MB of text.
BATCH_ROWS = 1024
# The same for rows that bring pictures' bytes along, a megabyte each.
PICTURE_ROWS = 64
_PICTURES = ("images", "image")


def read_parquet(path: Path, name: str, how: Reading) -> Iterator[bytes]:
    import pyarrow.parquet as pq

    with _arrow_faults(name), pq.ParquetFile(path, memory_map=True) as file:
        check_names(file.schema_arrow, name)
        wanted = [column for column in file.schema_arrow.names if column not in how.drop]
        how.dropped |= how.drop & set(file.schema_arrow.names)
        step = _batch_rows(file.schema_arrow, how)
        batches = file.iter_batches(batch_size=step, columns=wanted if how.drop else None)
        row = 0
        for batch in batches:
            how.at = (row + batch.num_rows) / file.metadata.num_rows
            yield _batch_lines(batch, name, row, how)
            row += batch.num_rows


def read_arrow(path: Path, name: str, how: Reading) -> Iterator[bytes]:
    """An IPC file or stream; Feather version 2 is the former."""
    with _arrow_faults(name), pa.memory_map(str(path), "r") as source:
        row = 0
        for batch in _ipc_batches(source, how):
            if row == 0:
                check_names(batch.schema, name)
            step = _batch_rows(batch.schema, how)
            for start in range(0, batch.num_rows, step):
                yield _batch_lines(batch.slice(start, step), name, row + start, how)
            row += batch.num_rows


def _ipc_batches(source: Any, how: Reading) -> Iterator[pa.RecordBatch]:
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if is_file:
        try:
            file = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            if not how.keep_cut:
                raise
            # without its end, a file is the stream that follows its first eight bytes
            source.seek(8)
        else:
            for index in range(file.num_record_batches):
                how.at = (index + 1) / file.num_record_batches
                yield file.get_batch(index)
            return
    for batch in pa.ipc.open_stream(source):
        how.at = source.tell() / source.size()
        yield batch


@contextlib.contextmanager
def _arrow_faults(name: str) -> Iterator[None]:
    """What Arrow says of files that it cannot read, as our own errors."""
    try:
        yield
    except pa.ArrowInvalid as fault:
        raise CutFile(f"{name}: {lower(fault)}; {GET_AGAIN}", BAD_DATA) from fault
    except (pa.ArrowException, OverflowError) as fault:
        raise ArtifactError(f"{name}: {lower(fault)}; save the table again, with another library", BAD_DATA) from fault
    except UnicodeDecodeError as fault:
        shown = bytes(fault.object).decode(errors="backslashreplace")[:80]
        message = f"{name}: the column name {shown!r} is not UTF-8; rename the column"
        raise ArtifactError(message, BAD_DATA) from fault


def check_names(schema: pa.Schema, name: str) -> None:
    """Raises ArtifactError (65) for a column or member whose name is no UTF-8 or occurs twice."""

    def names(kind: Any, place: str) -> None:
        for index in range(kind.num_fields):
            try:
                field = kind.field(index)
                inner = f"{place}.{field.name}"
            except UnicodeDecodeError as fault:
                what = f"the name of member {index + 1} of column {place!r}"
                raise ArtifactError(f"{name}: {what} is not UTF-8; rename it", BAD_DATA) from fault
            names(field.type, inner)

    seen: set[str] = set()
    for index in range(len(schema)):
        try:
            field = schema.field(index)
            column = field.name
        except UnicodeDecodeError as fault:
            raise ArtifactError(f"{name}: the name of column {index + 1} is not UTF-8; rename it", BAD_DATA) from fault
        if column in seen:
            raise ArtifactError(f"{name}: two columns have the name {column!r}; rename one of them", BAD_DATA)
        seen.add(column)
        names(field.type, column)


def _is_pictures(name: str, how: Reading) -> bool:
    return how.columns.get(name, name).lower() in _PICTURES


def _batch_rows(schema: pa.Schema, how: Reading) -> int:
    brings = any(_is_pictures(field.name, how) and "binary" in str(field.type) for field in schema)
    return PICTURE_ROWS if brings else BATCH_ROWS


def _batch_lines(batch: pa.RecordBatch, name: str, first_row: int, how: Reading) -> bytes:
    """JSON Lines of a batch whose first row is row `first_row` of the file, counted from 0."""
    columns: dict[str, Any] = {}
    for index, field in enumerate(batch.schema):
        if field.name in how.drop or field.name in how.no_text:
            how.dropped |= how.drop & {field.name}
            continue
        try:
            check_has_array(field.type, field.name)
            column = batch.column(index)
            _check_column(column, f"{name}: column {field.name!r}", first_row)
            if _is_pictures(field.name, how):
                column = bytes_as_text(column)
            columns[field.name] = to_json_types(column, field.name)
        except NoText as fault:
            if is_column(how.columns.get(field.name, field.name)):
                rule = f"values of type {fault.kind} have no JSON form; cast them, or leave the column out with"
                message = f"{name}: column {fault.path!r}: {rule} --drop {field.name}"
                raise ArtifactError(message, BAD_DATA) from fault
            how.no_text[field.name] = str(fault.kind)
    try:
        if not columns:
            return b"{}\n" * int(batch.num_rows)
        lines: bytes = batch_to_lines(pa.RecordBatch.from_pydict(columns))
    except ValueError as fault:
        raise ArtifactError(f"{name}: {fault}", BAD_DATA) from fault
    return lines


def _check_column(column: Any, place: str, first_row: int) -> None:
    """Raises ArtifactError (65) for values that are damaged; with the row, if it is text that is not UTF-8."""
    try:
        column.validate(full=True)
        return
    except pa.ArrowInvalid as fault:
        what = lower(fault)
    if "UTF8" in what:
        row = next((row for row in range(len(column)) if not _is_text(column, row, row + 1)), None)
        if row is not None:
            place = f"{place}, row {first_row + row + 1}"
    raise ArtifactError(f"{place}: {what}; mend the value, or save the table again", BAD_DATA)


def _is_text(values: Any, start: int, end: int) -> bool:
    """Whether every text in these rows is UTF-8, as far as they can be looked into: lists and members, too.

    Only slices are made: anything that copies would follow offsets that may be damaged.
    """
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = values.offsets
        return _is_text(values.values, offsets[start].as_py(), offsets[end].as_py())
    if pa.types.is_struct(kind):
        return all(_is_text(values.field(index), start, end) for index in range(kind.num_fields))
    try:
        values.slice(start, end - start).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
