"""What files hold is read, named or refused: kinds told by bytes, types without text, cut files, unused columns."""

import bz2
import contextlib
import datetime
import decimal
import gzip
import json
import lzma
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny_tokenizer

from postmill.io.errors import ArtifactError
from postmill.io.json_file import load_json
from postmill.io.manifest import load_artifact
from postmill.stages.tokenize.reading import Reading
from postmill.stages.tokenize.sources import open_sources, resolve

ROWS = [{"query": f"q{i}", "response": "a" * (i + 1)} for i in range(30)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def _forget() -> None:
    resolve.cache_clear()


def rows_of(path: Path, how: Reading | None = None) -> list[Any]:
    return [json.loads(line) for c in open_sources([str(path)], reading=how).chunks() for line in c.data.splitlines()]


def refusal(path: Path, how: Reading | None = None) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        rows_of(path, how)
    assert "\n" not in str(caught.value)
    return caught.value


# --- kinds told by bytes ----------------------------------------------------------------------------------------------


def forms() -> dict[str, bytes]:
    table = pa.Table.from_pylist(ROWS)
    parquet, file, stream = (pa.BufferOutputStream() for _ in range(3))
    pq.write_table(table, parquet)
    with pa.ipc.new_file(file, table.schema) as ipc:
        ipc.write_table(table)
    with pa.ipc.new_stream(stream, table.schema) as ipc:
        ipc.write_table(table)
    return {
        "jsonl": LINES,
        "list": json.dumps(ROWS).encode(),
        "printed": json.dumps(ROWS, indent=2).encode(),
        "printed rows": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
        "bom": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
        "parquet": parquet.getvalue().to_pybytes(),
        "arrow": file.getvalue().to_pybytes(),
        "stream": stream.getvalue().to_pybytes(),
        "gzip": gzip.compress(LINES),
        "gzip of a list": gzip.compress(json.dumps(ROWS).encode()),
        "bz2": bz2.compress(LINES),
        "xz": lzma.compress(LINES),
        "zstd": pa.compress(LINES, "zstd", asbytes=True),
    }


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "x.arrow", "x.jsonl.gz", "x.csv", "rows"])
def test_bytes_tell_what_a_file_is_whatever_its_name(tmp_path: Path, name: str) -> None:
    for form, data in forms().items():
        resolve.cache_clear()
        (tmp_path / name).write_bytes(data)
        assert rows_of(tmp_path / name) == ROWS, form


def test_a_damaged_line_is_not_taken_for_a_row_printed_over_lines(tmp_path: Path) -> None:
    for first in (b'{"query":"q",response":"a"}', b'{"query": "q', b'{"query": {"a": 1', b'{"query": [1, 2}'):
        (tmp_path / "x.jsonl").write_bytes(first + b"\n" + LINES)
        resolve.cache_clear()
        [chunk] = open_sources([str(tmp_path / "x.jsonl")]).chunks()
        assert chunk.data == first + b"\n" + LINES


@pytest.mark.parametrize(
    ("data", "message", "code"),
    [
        (b"%PDF-1.7", "is a PDF: extract its text", 65),
        (b"SQLite format 3\x00", "is an SQLite database", 65),
        (b"Obj\x01\x04", "is an Avro file", 65),
        (b"\xff\xfe{\x00", "is UTF-16 text: convert it with `iconv -f utf-16 -t utf-8`", 65),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer and not the data", 65),
        (b"<!DOCTYPE html>\n<html>", "is a web page and not data", 65),
        (b"\x80\x04\x95", "is a pickle, which can run any program", 77),
    ],
)
def test_what_is_no_data_is_named(tmp_path: Path, data: bytes, message: str, code: int) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    fault = refusal(tmp_path / "x.jsonl")
    assert message in str(fault) and fault.code == code


def test_archives_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.jsonl", "w") as archive:
        archive.writestr("a.jsonl", LINES)
    assert "is a zip archive (.xlsx files are one): unpack it" in str(refusal(tmp_path / "x.jsonl"))


# --- tables -----------------------------------------------------------------------------------------------------------

DAY = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
NAME = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
WITH_TEXT = {
    "time": (pa.array([DAY, None], pa.timestamp("us", tz="UTC")), ["2024-01-02 03:04:05.000000Z", None]),
    "date": (pa.array([DAY.date(), None]), ["2024-01-02", None]),
    "decimal": (pa.array([decimal.Decimal("1.50"), None]), ["1.50", None]),
    "half": (pa.array([1.5, None], pa.float16()), [1.5, None]),
    "kinds": (pa.array([DAY, None], pa.timestamp("s")).dictionary_encode(), ["2024-01-02 03:04:05", None]),
    "runs": (pc.run_end_encode(pa.array(["a", "a"])), ["a", "a"]),
    "view": (pa.array([[1.5], None], pa.list_view(pa.float16())), [[1.5], None]),
    "fixed": (pa.array([[DAY, DAY], None], pa.list_(pa.timestamp("s"), 2)), [["2024-01-02 03:04:05"] * 2, None]),
    "map": (pa.array([[(1, DAY)], None], pa.map_(pa.int32(), pa.date32())), [{"1": "2024-01-02"}, None]),
    "uuid": (pa.array([NAME.bytes, None], pa.uuid()), [str(NAME), None]),
    "union": (
        pa.UnionArray.from_dense(
            pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([7]), pa.array("x")]
        ),
        [7, "x"],
    ),
}
WITHOUT = {
    "bytes": pa.array([b"\x00\xff", b"x"]),
    "fixed bytes": pa.array([b"ab", b"cd"], pa.binary(2)),
    "duration": pa.array([1, 2], pa.duration("s")),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3])] * 2),
    "keys": pa.array([[(1.5, 1)], None], pa.map_(pa.float64(), pa.int32())),
}


def in_messages(values: pa.Array) -> pa.Array:
    """A list of one message a row, with the values as a member."""
    role, content = pa.array(["assistant"] * len(values)), pa.array(["a"] * len(values))
    message = pa.StructArray.from_arrays([role, content, values], names=["role", "content", "member"])
    return pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), message)


@pytest.mark.parametrize("kind", WITH_TEXT)
def test_types_with_a_text_form_at_any_depth(tmp_path: Path, kind: str) -> None:
    values, expected = WITH_TEXT[kind]
    table = pa.record_batch({"query": ["q", "q"], "extra": values, "messages": in_messages(values)})
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as file:
        file.write_batch(table.slice(1))
        file.write_batch(table)
    for row, value in zip(rows_of(tmp_path / "x.arrow"), [expected[1], *expected], strict=True):
        assert row.get("extra") == value and row["messages"][0].get("member") == value


@pytest.mark.parametrize("kind", WITHOUT)
def test_types_without_one_stop_a_run_only_where_they_are_read(tmp_path: Path, kind: str) -> None:
    table = pa.record_batch({"query": ["q", "q"], "blob": WITHOUT[kind], "n": [1, 2]})
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as file:
        file.write_batch(table)
    how = Reading()
    assert rows_of(tmp_path / "x.arrow", how) == [{"query": "q", "n": 1}, {"query": "q", "n": 2}]
    assert how.no_text == {"blob": str(WITHOUT[kind].type)}
    table = pa.record_batch({"query": ["q", "q"], "messages": in_messages(WITHOUT[kind])})
    with pa.ipc.new_file(str(tmp_path / "y.arrow"), table.schema) as file:
        file.write_batch(table)
    fault = refusal(tmp_path / "y.arrow")
    assert fault.code == 65
    assert "y.arrow: column 'messages.member': values of type " in str(fault) and "--drop messages" in str(fault)
    assert rows_of(tmp_path / "y.arrow", Reading(drop=frozenset({"messages"}))) == [{"query": "q"}] * 2


def as_intervals(stream: bytes) -> bytes:
    """A stream whose durations are called intervals, which pyarrow reads but does not write: one byte of the schema."""
    for at in [at for at, byte in enumerate(stream[:2000]) if byte == 18]:
        patched = stream[:at] + b"\x0b" + stream[at + 1 :]
        with contextlib.suppress(pa.ArrowException, OSError):
            if "interval" in str(pa.ipc.open_stream(patched).schema):
                return patched
    raise AssertionError("no type was found")


@pytest.mark.parametrize("nested", [False, True])
def test_intervals_that_pyarrow_has_no_array_for(tmp_path: Path, nested: bool) -> None:
    """Found in arrow-testing's files: `KeyError: 21`."""
    member = pa.array([1, 2], pa.duration("s"))
    values = in_messages(member) if nested else member
    for column in ("blob", "messages"):
        table = pa.record_batch({"query": ["q", "q"], column: values})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_batch(table)
        (tmp_path / f"{column}.arrow").write_bytes(as_intervals(sink.getvalue().to_pybytes()))
    how = Reading()
    assert rows_of(tmp_path / "blob.arrow", how) == [{"query": "q"}] * 2
    assert "interval" in how.no_text["blob"]
    fault = refusal(tmp_path / "messages.arrow")
    assert fault.code == 65 and "interval" in str(fault) and "--drop messages" in str(fault)
    assert rows_of(tmp_path / "messages.arrow", Reading(drop=frozenset({"messages"}))) == [{"query": "q"}] * 2


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x"])
def test_a_name_of_a_member_that_is_not_utf8_is_bad_data(tmp_path: Path, name: str) -> None:
    """Found in JSONTestSuite: a byte that continues nothing in a key, where the file's kind is told by its bytes."""
    (tmp_path / name).write_bytes(b'{"\xb9":"0",}')
    with contextlib.suppress(ArtifactError):  # whether a line is whole is the business of the reader of rows
        resolve(str(tmp_path / name))
    (tmp_path / "tokenizer.json").write_bytes(b'{"\xb9": 1}')
    with pytest.raises(ArtifactError, match="not JSON") as damaged:
        load_json(tmp_path / "tokenizer.json")
    assert damaged.value.code == 65


def test_names_and_strings_that_are_not_utf8_are_placed(tmp_path: Path) -> None:
    values = pa.array([["ok"]] * 500 + [["?\x01"]] + [["ok"]] * 700)
    pq.write_table(pa.table({"response": values, "marker": ["x"] * 1201}), tmp_path / "x.parquet", compression="none")
    data = (tmp_path / "x.parquet").read_bytes()
    assert data.count(b"?\x01") >= 1
    (tmp_path / "x.parquet").write_bytes(data.replace(b"?\x01", b"\xff\xfe"))
    fault = refusal(tmp_path / "x.parquet")
    assert fault.code == 65 and "x.parquet: column 'response', row 501: " in str(fault)
    (tmp_path / "y.parquet").write_bytes(data.replace(b"marker", b"mark\xff\xfe"))
    fault = refusal(tmp_path / "y.parquet")
    assert fault.code == 65 and "y.parquet: the column name 'mark\\\\xff\\\\xfe' is not UTF-8" in str(fault)


def test_damaged_tables_are_bad_data_and_never_a_fault_of_ours(tmp_path: Path) -> None:
    import random

    table = pa.table({"messages": in_messages(pa.array(["x", "y"])), "n": [1, 2], "s": ["a", "b"]})
    pq.write_table(table, tmp_path / "x.parquet", compression="none")
    with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as file:
        file.write_table(table)
    dice = random.Random(5)
    for name in ("x.parquet", "x.arrow"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(dice.randrange(1, 4)):
                data[dice.randrange(8, len(data))] = dice.randrange(256)
            (tmp_path / f"bad-{name}").write_bytes(data)
            resolve.cache_clear()
            try:
                rows_of(tmp_path / f"bad-{name}")
            except ArtifactError as fault:
                assert fault.code == 65 and "\n" not in str(fault)


# --- save_to_disk -----------------------------------------------------------------------------------------------------


def save(folder: Path, files: dict[str, list[Any]], listed: list[str], **more: Any) -> None:
    folder.mkdir(parents=True)
    for name, rows in files.items():
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in listed], **more}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset_is_what_its_state_lists(tmp_path: Path) -> None:
    data, cache = "data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"
    save(tmp_path / "one", {data: ROWS[:3], cache: ROWS[:3], "stray.arrow": ROWS}, [data])
    assert rows_of(tmp_path / "one") == ROWS[:3]
    for split in ("train", "test"):
        save(tmp_path / "both" / split, {data: ROWS[:2], cache: ROWS}, [data])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert rows_of(tmp_path / "both") == ROWS[:2]
    save(tmp_path / "gone", {data: ROWS}, [data, "data-00001-of-00002.arrow"])
    assert refusal(tmp_path / "gone").code == 66
    save(tmp_path / "chosen", {data: ROWS}, [data], _indices_data_files=[{"filename": "indices.arrow"}])
    assert "flatten_indices()" in str(refusal(tmp_path / "chosen"))


def test_the_cache_of_datasets_is_no_data(tmp_path: Path) -> None:
    save(tmp_path / "cached", {"name-train.arrow": ROWS, "cache-ab12.arrow": ROWS}, [])
    (tmp_path / "cached" / "state.json").unlink()
    assert rows_of(tmp_path / "cached") == ROWS


# --- cut files --------------------------------------------------------------------------------------------------------


def cut_forms() -> dict[str, bytes]:
    table = pa.Table.from_pylist(ROWS)
    stream, file = pa.BufferOutputStream(), pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as ipc:
        ipc.write_table(table, max_chunksize=10)
    with pa.ipc.new_file(file, table.schema) as ipc:
        ipc.write_table(table, max_chunksize=10)
    text = "query,response\n" + "".join(f'q{i},"{"a" * (i + 1)}"\n' for i in range(30))
    whole = {
        "x.json": json.dumps(ROWS).encode(),
        "y.json": json.dumps(ROWS, indent=1).encode(),
        "x.jsonl": LINES,
        "x.csv": text.encode(),
        "x.arrow": stream.getvalue().to_pybytes(),
        "y.arrow": file.getvalue().to_pybytes(),
    }
    cut = {name: data[: len(data) * 8 // 10] for name, data in whole.items()}
    cut["x.csv"] = cut["x.csv"][: cut["x.csv"].rindex(b'"a') + 2]
    big = "".join(json.dumps({"text": str(hash((i, "x")))}) + "\n" for i in range(20_000)).encode()
    cut["x.jsonl.gz"] = gzip.compress(big)[:-30_000]
    cut["x.jsonl.xz"] = lzma.compress(big)[:-30_000]
    return cut


@pytest.mark.parametrize(
    "name", ["x.json", "y.json", "x.jsonl", "x.csv", "x.arrow", "y.arrow", "x.jsonl.gz", "x.jsonl.xz"]
)
def test_a_cut_file_is_read_up_to_the_cut_on_request(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(cut_forms()[name])
    how = Reading(keep_cut=True)
    found = rows_of(tmp_path / name, how)
    if name.startswith("x.jsonl."):
        assert 1000 < len(found) < 20_000
    else:
        assert 19 < len(found) < 30 and found == ROWS[: len(found)]
    assert list(how.cut) == [name] and how.cut[name].startswith(f"cut behind line {len(found)}")
    if name != "x.jsonl":  # there the row is a bad one, for the encoder to refuse
        resolve.cache_clear()
        assert refusal(tmp_path / name).code == 65


def test_what_is_whole_is_not_called_cut(tmp_path: Path) -> None:
    for data in (LINES, LINES[:-1], LINES + b'{"a": NaN}', b""):
        (tmp_path / "x.jsonl").write_bytes(data)
        resolve.cache_clear()
        how = Reading(keep_cut=True)
        assert b"".join(c.data for c in open_sources([str(tmp_path / "x.jsonl")], reading=how).chunks()) == data
        assert how.cut == {}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    return tmp_path


def postmill(here: Path, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "postmill.cli.main", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_columns_that_nobody_reads_are_named_once(here: Path) -> None:
    rows = [{"instruction": "How many?", "context": "Two stones.", "response": "Two.", "n": i} for i in range(3)]
    (here / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = postmill(here, "tokenize", "x.jsonl", "-m", "base", "-o", "t").stderr
    assert said.count("tokenize: not read, kept in extra: context, n\n") == 1
    dropped = ("--drop", "context", "--drop", "n")
    said = postmill(here, "tokenize", "x.jsonl", "-m", "base", "-o", "u", *dropped).stderr
    assert "not read" not in said
    assert "not read" not in postmill(here, "tokenize", "x.jsonl", "-m", "base", "-o", "q", "-q").stderr
    refused = postmill(here, "tokenize", "x.jsonl", "-m", "base", "-o", "v", "--drop", "contxt", code=2).stderr
    assert "drop: no row has a column 'contxt'; did you mean context?" in refused


def test_numbers_that_are_none_stop_a_run_only_where_they_are_read(here: Path) -> None:
    line = '{"query": "q", "response": "a", "score": NaN, "more": {"x": [1, -Infinity]}}\n'
    (here / "x.jsonl").write_text(line * 2)
    said = postmill(here, "tokenize", "x.jsonl", "-m", "base", "-o", "t").stderr
    assert "2 rows have NaN or Infinity in columns that nobody reads; kept in extra as null" in said
    table = pa.ipc.open_file(here / "t" / "tokens.arrow").read_all()
    assert json.loads(table["extra"][0].as_py()) == {"more": {"x": [1, None]}, "score": None}
    (here / "y.jsonl").write_text('{"query": "q", "score": NaN, "response": "a", "margin": NaN}\n')
    said = postmill(here, "tokenize", "y.jsonl", "-m", "base", "-o", "u", code=65).stderr
    assert "y.jsonl:1: $.margin: NaN is not JSON" in said
    postmill(here, "tokenize", "y.jsonl", "-m", "base", "-o", "u", "--drop", "margin")


def test_a_kept_cut_is_said_and_recorded(here: Path) -> None:
    (here / "x.json").write_bytes(json.dumps(ROWS).encode()[:-100])
    said = postmill(here, "tokenize", "x.json", "-m", "base", "-o", "t", code=65).stderr
    assert "file ends inside a record" in said
    said = postmill(here, "tokenize", "x.json", "-m", "base", "-o", "t", "--on-cut", "keep").stderr
    metrics = load_artifact(here / "t").manifest.metrics
    assert f"tokenize: warning: x.json: cut behind line {metrics['rows']}" in said
    assert list(metrics["cut_files"]) == ["x.json"]


def test_text_needs_no_date(here: Path) -> None:
    config = json.loads((here / "base" / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ strftime_now('%Y') }}" + config["chat_template"]
    (here / "base" / "tokenizer_config.json").write_text(json.dumps(config))
    (here / "x.jsonl").write_text('{"text": "Two stones."}\n')
    (here / "y.jsonl").write_text('{"query": "q", "response": "a"}\n')
    postmill(here, "tokenize", "x.jsonl", "-m", "base", "-o", "t")
    assert "pass --date" in postmill(here, "tokenize", "y.jsonl", "-m", "base", "-o", "u", code=2).stderr
    asked = ("--for", "prompt", "-o", "u")
    assert "pass --date" in postmill(here, "tokenize", "y.jsonl", "-m", "base", *asked, code=2).stderr
    postmill(here, "tokenize", "y.jsonl", "-m", "base", "-o", "v", "--date", "2026-01-01")


def test_show_previews_raw_rows_with_the_flags_of_tokenize(here: Path) -> None:
    (here / "x.jsonl").write_text('{"ask": "q", "response": "a", "blob": NaN}\n')
    (here / "t.jinja").write_text(
        "{{ strftime_now('%Y') }}{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    )
    flags = ["--chat-template", "t.jinja", "--date", "1999-01-01", "--system", "Be brief.", "--columns", "ask=query"]
    shown = postmill(here, "show", "x.jsonl", "-m", "base", "--drop", "blob", *flags).stdout
    assert "1999" in shown and "Be brief." in shown and "[user:q]" in shown
    refused = postmill(here, "show", "x.jsonl", "-m", "base", "--thinking", "much", code=2).stderr
    assert "--thinking" in refused
