"""The strategy `wrapped`: the input is copied once, as pieces, into a tokens artifact inside the packed one."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.arrays import from_numpy, to_numpy
from postmill.io.errors import INTERNAL, USAGE, ConfigError, StageError
from postmill.io.ledger import Ledger
from postmill.io.manifest import SIDE_FILE, Counts, Manifest
from postmill.io.packed import TOKENS
from postmill.io.schemas import TOKENS_V1, with_pieces
from postmill.io.table import StreamReader, TableReader, Trailer
from postmill.io.upstream import inside, keep_trailer
from postmill.stages.pack.survey import Survey, Surveyor, Table, batches, ledger_lines
from postmill.stages.pack.wrap import Wrapper, check_may_be_cut
from postmill.stages.protocol import Input, Inputs, Out


class Wrapped(NamedTuple):
    """The pieces, and what became of the rows they were cut from."""

    tables: list[Table]
    rows: Survey
    pieces: Survey
    metrics: dict[str, Any]


def wrap(source: StreamReader | list[Table], ports: Inputs, row_tokens: int, out: Out) -> Wrapped:
    """Write the pieces of all rows that can be packed. Raises ConfigError (2) for samples and their rewards,
    ArtifactError (65) for rows that cannot be cut."""
    inputs = ports["tokens"]
    if ports["rewards"] or any(item.kind != "tokens" for item in inputs):
        raise ConfigError("strategy wrapped cuts rows, and samples cannot be cut; use best_fit", USAGE)
    folder = inside(out.dir)
    writer = out.table(f"{folder.name}/{TOKENS}", with_pieces(TOKENS_V1))
    surveyor, wrapper = Surveyor(), Wrapper(row_tokens)
    lengths: list[NDArray[np.uint32]] = [np.empty(0, np.uint32)]
    cut_rows = 0
    for batch, first_source, place in _batches(source):
        reasons = surveyor.add(batch)
        check_may_be_cut(batch, place)
        gone = np.flatnonzero(reasons)
        out.ledger.add(ledger_lines(batch, gone, reasons[gone], first_source))
        kept = batch if not len(gone) else batch.take(from_numpy(np.flatnonzero(reasons == 0), pa.int64()))
        if kept.num_rows == 0:
            continue
        pieces, is_cut = wrapper.cut(_numbered(kept, first_source))
        writer.write(pieces)
        lengths.append(to_numpy(pieces.column("length")).astype(np.uint32))
        out.ledger.add(ledger_lines(kept, np.flatnonzero(is_cut), None, first_source))
        out.ledger.keep(int((~is_cut).sum()))
        cut_rows += int(is_cut.sum())
    writer.close()
    made = _finish(source, inputs, writer.rows, out)
    tables = [Table(TableReader(folder / TOKENS, TOKENS_V1, written=True), sources_of(made), 0)]
    rows = surveyor.finish(tables if isinstance(source, StreamReader) else source)
    piece_lengths = np.concatenate(lengths)
    if piece_lengths.sum(dtype=np.int64) != rows.lengths[rows.reasons == 0].sum(dtype=np.int64):
        raise StageError("wrapped: the pieces have other tokens than the rows; this is a bug of ours", INTERNAL)
    none = np.zeros(len(piece_lengths), np.int64)
    survey = Survey(
        piece_lengths,
        joined=none.astype(np.bool_),
        reasons=none.astype(np.uint8),
        patches=none,
        prompt=np.full_like(none, -1),
    )
    metrics = {"cut_rows": cut_rows, "cut_targets": wrapper.cut_targets, "cut_weight": wrapper.cut_weight}
    return Wrapped(tables, rows, survey, metrics)


def fill(lengths: NDArray[np.uint32], row_tokens: int) -> NDArray[np.uint32]:
    """Where each bin starts among the pieces, and the end. Pieces come in order, and end where bins do."""
    ends = np.cumsum(lengths, dtype=np.int64)
    is_last = ends % row_tokens == 0
    is_last[-1:] = True
    return np.append(0, np.flatnonzero(is_last) + 1).astype(np.uint32)


def sources_of(made: Manifest) -> list[str]:
    """The names of the files that a tokens artifact was made from."""
    return [str(name) for name in made.metrics.get("sources", [])]


def _batches(source: StreamReader | list[Table]) -> Iterator[tuple[pa.RecordBatch, int, str]]:
    """Each batch, what to add to its sources, and the name of where it is from."""
    if isinstance(source, StreamReader):
        yield from ((batch, 0, "stdin") for batch in source)
    else:
        yield from ((batch, table.first_source, str(table.reader.path)) for table, batch in batches(source))


def _numbered(batch: pa.RecordBatch, first_source: int) -> pa.RecordBatch:
    """The batch with the sources of all inputs numbered as one."""
    if not first_source:
        return batch
    index = batch.schema.get_field_index("source")
    numbers = from_numpy(to_numpy(batch.column(index)) + np.int32(first_source), pa.int32())
    return batch.set_column(index, batch.schema.field(index), numbers)


def _finish(source: StreamReader | list[Table], inputs: list[Input], num_pieces: int, out: Out) -> Manifest:
    """Make the folder inside an artifact. Of a stream its ledger is kept; that of an artifact is where it was."""
    folder = inside(out.dir)
    if isinstance(source, StreamReader):
        assert source.trailer is not None  # a stream that ends without one has raised
        trailer, sources = source.trailer, sources_of(source.trailer.manifest)
    else:
        artifacts = [item.artifact for item in inputs if item.artifact is not None]
        side = artifacts[0].path / SIDE_FILE
        sources = [name for table in source for name in table.sources]
        trailer = Trailer(
            rows=num_pieces,
            digest="",
            manifest=artifacts[0].manifest,
            ledger=Ledger(None).to_ipc(),
            side=side.read_bytes() if side.is_file() else b"",
        )
    made = msgspec.structs.replace(
        trailer.manifest,
        counts=Counts(rows_in=num_pieces, kept=num_pieces),
        metrics=trailer.manifest.metrics | {"sources": sources},
    )
    keep_trailer(msgspec.structs.replace(trailer, manifest=made), folder, out.digests())
    return made
