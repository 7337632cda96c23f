"""Arrow files and streams: what is written comes back, and what is cut or changed never passes for whole."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import token_tables

from postmill.io.digest import digest_file
from postmill.io.errors import BAD_DATA, CUT_STREAM, MISMATCH, NO_INPUT, ArtifactError
from postmill.io.ledger import Ledger
from postmill.io.schemas import BINS_V1, TOKENS_V1
from postmill.io.table import StreamReader, TableReader, TableWriter

BATCHES = token_tables.to_batches(token_tables.random_rows(3, 25))


def stream_bytes() -> bytes:
    sink = io.BytesIO()
    token_tables.write_stream(sink, BATCHES)
    return sink.getvalue()


def read_stream(data: bytes) -> list[pa.RecordBatch]:
    return list(StreamReader(io.BytesIO(data), TOKENS_V1))


def table_at(path: Path) -> Path:
    writer = TableWriter(path, TOKENS_V1)
    for batch in BATCHES:
        writer.write(batch)
    writer.close()
    return path


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    reader = TableReader(table_at(tmp_path / "rows.arrow"), TOKENS_V1)
    assert pa.Table.from_batches(reader) == pa.Table.from_batches(BATCHES)


def test_a_writer_knows_the_digest_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    writer = TableWriter(path, TOKENS_V1)
    for batch in BATCHES:
        writer.write(batch)
    assert writer.digest == ""
    writer.close()
    assert writer.digest == digest_file(path)


def test_a_stream_gives_back_what_was_written_and_who_made_it() -> None:
    reader = StreamReader(io.BytesIO(stream_bytes()), TOKENS_V1)
    assert pa.Table.from_batches(reader) == pa.Table.from_batches(BATCHES)
    assert reader.header.stage == "tokenize"
    assert reader.trailer is not None
    assert reader.trailer.manifest.stage == "tokenize"
    assert reader.trailer.rows == 25


def test_a_stream_cut_anywhere_is_refused() -> None:
    data = stream_bytes()
    eos = 8  # the end mark after the trailer carries nothing
    rng = np.random.default_rng(0)
    for cut in [*range(0, 2000), *rng.integers(0, len(data) - eos, 1000)]:
        with pytest.raises(ArtifactError) as caught:
            read_stream(data[: int(cut)])
        assert caught.value.code == CUT_STREAM


def test_a_stream_that_lost_a_whole_batch_is_refused() -> None:
    """pyarrow itself reads such a stream without complaint: the reason for the numbers and the trailer."""
    sink = io.BytesIO()
    writer = TableWriter(sink, TOKENS_V1, StreamReader(io.BytesIO(stream_bytes())).header)
    lengths = [len(sink.getvalue())]
    for batch in BATCHES:
        writer.write(batch)
        lengths.append(len(sink.getvalue()))
    writer.finish_stream(token_tables.manifest(writer.rows), Ledger(None).to_ipc())
    data = sink.getvalue()
    without = data[: lengths[1]] + data[lengths[2] :]
    assert sum(b.num_rows for b in pa.ipc.open_stream(without)) == 25 - BATCHES[1].num_rows
    with pytest.raises(ArtifactError, match="batch 1 is missing"):
        read_stream(without)


def test_no_single_byte_change_goes_unnoticed(tmp_path: Path) -> None:
    data = bytearray(table_at(tmp_path / "rows.arrow").read_bytes())
    whole = pa.Table.from_batches(BATCHES)
    rng = np.random.default_rng(1)
    seen = 0
    for place in rng.integers(0, len(data), 400):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path = tmp_path / "changed.arrow"
        path.write_bytes(changed)
        try:
            # a flip in padding, or in what no reader looks at, may change nothing: that is no harm
            assert pa.Table.from_batches(TableReader(path, TOKENS_V1)) == whole
        except ArtifactError as error:
            assert error.code in (BAD_DATA, MISMATCH)
            seen += 1
    assert seen > 250


def test_what_is_no_table_says_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, code in ((tmp_path / "none", NO_INPUT), (tmp_path / "text", BAD_DATA)):
        with pytest.raises(ArtifactError) as caught:
            TableReader(path)
        assert caught.value.code == code
    with pytest.raises(ArtifactError, match='no column "rows"') as caught:
        TableReader(table_at(tmp_path / "rows.arrow"), BINS_V1)
    assert caught.value.code == MISMATCH


def test_text_on_stdin_is_not_taken_for_a_stream() -> None:
    with pytest.raises(ArtifactError) as caught:
        read_stream(b'{"messages": []}\n' * 100)
    assert caught.value.code == CUT_STREAM
    foreign = io.BytesIO()
    with pa.ipc.new_stream(foreign, BATCHES[0].schema) as writer:
        writer.write_batch(BATCHES[0])
    with pytest.raises(ArtifactError, match="not a Postmill stream") as caught:
        read_stream(foreign.getvalue())
    assert caught.value.code == BAD_DATA


def test_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    first, second = table_at(tmp_path / "a"), table_at(tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
