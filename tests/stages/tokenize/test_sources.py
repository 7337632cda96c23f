"""Datasets of every format and spelling come out as the rows they hold, in chunks that depend on the files alone."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postmill import _native
from postmill.io.errors import ArtifactError, ConfigError
from postmill.io.hub import Repository
from postmill.stages.tokenize import selection, sources
from postmill.stages.tokenize.files import choose_files
from postmill.stages.tokenize.references import Reference, parse_reference
from postmill.stages.tokenize.sources import Sources, cut, open_sources, resolve, resolve_inputs

ROWS = [
    {"messages": [{"role": "user", "content": f"question {i} é\n"}, {"role": "assistant", "content": "a" * (i % 50)}]}
    for i in range(100)
]


@pytest.fixture(autouse=True)
def _forget() -> None:
    resolve.cache_clear()


def rows_of(data: Sources) -> list[tuple[str, int, Any]]:
    """(source, line, row) of everything selected."""
    found = []
    for chunk in data.chunks():
        records, _, _ = _native.scan_lines(chunk.data, chunk.first_line)
        wanted = None if chunk.selection is None else set(chunk.selection)
        for number, (line, start, end, _) in enumerate(records, chunk.first_record):
            if wanted is None or number in wanted:
                found.append((data.sources[chunk.source].name, line, json.loads(chunk.data[start:end])))
    return found


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:a/b", Reference("hf:a/b", repository=Repository("hf", "a/b", type="dataset"))),
        ("hf::a/b#5", Reference("hf::a/b#5", repository=Repository("hf", "a/b", type="dataset"), count=5)),
        (
            "ms:a/b@v1:x/y#7",
            Reference("ms:a/b@v1:x/y#7", "", Repository("ms", "a/b", "v1", "dataset"), ("x", "y"), 7),
        ),
        ("ms::a/b:all", Reference("ms::a/b:all", "", Repository("ms", "a/b", type="dataset"), ("all",))),
        ("no/such.jsonl#3", Reference("no/such.jsonl#3", "no/such.jsonl", count=3)),
    ],
)
def test_reference(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected


def test_an_existing_path_wins_before_each_separator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a#1.jsonl", "a#2", "a:b", "hf:x"):
        Path(name).mkdir()
    assert parse_reference("a#1.jsonl") == Reference("a#1.jsonl", "a#1.jsonl")
    assert parse_reference("a#1.jsonl#9") == Reference("a#1.jsonl#9", "a#1.jsonl", count=9)
    assert parse_reference("a#2") == Reference("a#2", "a#2")
    assert parse_reference("a:b#3") == Reference("a:b#3", "a:b", count=3)
    assert parse_reference("a:b:c/d") == Reference("a:b:c/d", "a:b", subsets=("c", "d"))
    assert parse_reference("hf:x") == Reference("hf:x", "hf:x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "dataset: the reference is empty; give a path, hf:id or ms:id"),
        ("hf:a/b#x", "dataset hf:a/b#x: #x is not a count of rows; expected a whole number from 1, as in #500"),
        ("hf:a/b#0", "dataset hf:a/b#0: #0 is not a count of rows; expected a whole number from 1, as in #500"),
        ("hf:", "hf:: expected an id like hf:owner/name or hf:owner/name@revision"),
        ("hf:a/b@", "hf:a/b@: expected an id like hf:owner/name or hf:owner/name@revision"),
        ("hf:a/b:x//y", "dataset hf:a/b:x//y: an empty subset name in :x//y; separate names by one slash"),
    ],
)
def test_bad_references(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert str(caught.value) == message


# --- formats ----------------------------------------------------------------------------------------------------------


def test_every_format_holds_the_same_rows(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "list.json").write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), "utf-8")
    (tmp_path / "lines.json").write_bytes(jsonl.read_bytes())
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(jsonl.read_bytes()))
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    with pa.CompressedOutputStream(str(tmp_path / "rows.ndjson.zst"), "zstd") as file:
        file.write(jsonl.read_bytes())
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=9)
    with pa.OSFile(str(tmp_path / "rows.feather"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    expected = [(i + 1, row) for i, row in enumerate(ROWS)]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 9
    for name in names:
        assert [(line, row) for _, line, row in rows_of(open_sources([str(tmp_path / name)]))] == expected, name


def test_one_object_per_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.json").write_text(json.dumps(ROWS[i], indent=1))
    found = rows_of(open_sources([str(tmp_path / "data")]))
    assert found == [(f"data/{i}.json", 1, ROWS[i]) for i in range(3)]


def test_columnar_padding_is_no_data(tmp_path: Path) -> None:
    """Arrow gives all structs the union of their members; the absent must not come back as null (ms-swift#6467)."""
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "calls": [{"f": 1}]}]},
        {"messages": [{"role": "user", "content": "q", "name": "n"}], "score": 0.1, "xs": [None, 1]},
        {"messages": [], "big": 2**62},
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), tmp_path / "x.parquet")
    found = [row for _, _, row in rows_of(open_sources([str(tmp_path / "x.parquet")]))]
    rows[0]["messages"][1].pop("content")  # type: ignore[index]
    assert found == rows


def _schema() -> pa.Schema:
    call = pa.struct({"f": pa.int64()})
    message = pa.struct(
        {"role": pa.string(), "content": pa.large_string(), "calls": pa.list_(call), "name": pa.string()}
    )
    return pa.schema(
        {"messages": pa.list_(message), "score": pa.float64(), "xs": pa.list_(pa.int32()), "big": pa.int64()}
    )


def test_csv_and_tsv(tmp_path: Path) -> None:
    rows = [{"query": 'a "b", c\nd', "response": "1", "note": ""}, {"query": "é", "response": "02", "note": "x\ty"}]
    for name, delimiter in (("x.csv", ","), ("x.tsv", "\t")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.getvalue().encode())
        found = [row for _, _, row in rows_of(open_sources([str(tmp_path / name)]))]
        assert found == [{"query": 'a "b", c\nd', "response": "1"}, rows[1]]


def test_text_keeps_its_line_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b'\xef\xbb\xbfone\r\n\n  \ntw"o\nlast')
    found = [(line, row["text"]) for _, line, row in rows_of(open_sources([str(tmp_path / "x.txt")]))]
    assert found == [(1, "one"), (4, 'tw"o'), (5, "last")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.csv", b"a,b\n1,2\n1\n", "x.csv:3: 1 cells where the header has 2; quote cells that hold commas, quotes or"),
        ("x.csv", b'a,b\n1,"2\n', "x.csv:2: unexpected end of data; check the quotes"),
        ("x.csv", b"a,a\n1,2\n", "x.csv:1: column 'a' occurs twice in the header; rename one of the two"),
        ("x.csv", b"a\n\xff\n", "is not UTF-8; convert the file"),
        ("x.txt", b"ok\nab\xff\n", "x.txt:2:3: byte 0xff is not UTF-8; convert the file"),
        ("x.json", b"[1, 2", "x.json: file ends inside a record; it was cut"),
        ("x.json", b"[1 2]", "x.json: '2' where ',' or ']' after an item of the list should be (byte 3 of the file"),
        ("x.jsonl.gz", gzip.compress(b"{}\n" * 1000, mtime=0)[:-9], "the file was cut or damaged, get it again"),
        ("x.jsonl.gz", b"not gzip", "x.jsonl.gz: not a gzipped file"),
        ("x.jsonl.zst", b"not zstd", "the file was cut or damaged, get it again"),
        ("x.parquet", b"not parquet", "the file was cut or damaged, get it again"),
        ("x.arrow", b"not arrow at all", "the file was cut or damaged, get it again"),
        (
            "x.jsonl",
            b"x" * 5000,
            "x.jsonl:1: the line is longer than 1000 bytes; raise --max-line-bytes or split the row",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        list(open_sources([str(tmp_path / name)], chunk_bytes=1000, max_line_bytes=1000).chunks())
    assert caught.value.code == 65
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cut_zstd_is_an_error(tmp_path: Path) -> None:
    with pa.CompressedOutputStream(str(tmp_path / "x.jsonl.zst"), "zstd") as file:
        file.write(os.urandom(100_000).hex().encode() + b"\n")
    whole = (tmp_path / "x.jsonl.zst").read_bytes()
    (tmp_path / "x.jsonl.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError):
        list(open_sources([str(tmp_path / "x.jsonl.zst")]).chunks())


# --- folders and subsets ----------------------------------------------------------------------------------------------


def test_folders(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "train-1.jsonl", ROWS[:2])
    write_jsonl(tmp_path / "d" / "train-0.jsonl", ROWS[2:4])
    write_jsonl(tmp_path / "d" / "test.jsonl", ROWS[4:6])
    (tmp_path / "d" / "dataset_infos.json").write_text("{}")
    (tmp_path / "d" / ".hidden.jsonl").write_text("{}")
    found = rows_of(open_sources([str(tmp_path / "d")]))
    assert [row for _, _, row in found] == [*ROWS[2:4], *ROWS[:2]]


CARD = """---
configs:
- config_name: plain
  default: true
  data_files:
  - split: train
    path: plain/train-*.jsonl
  - split: test
    path: plain/test.jsonl
- config_name: other
  data_files: other/*.jsonl
---
# Card
"""


def test_subsets_of_a_card() -> None:
    names = ["README.md", "plain/train-0.jsonl", "plain/test.jsonl", "other/a.jsonl", "stray.jsonl"]
    assert choose_files(names, CARD, (), "d") == ["plain/train-0.jsonl"]
    assert choose_files(names, CARD, ("other",), "d") == ["other/a.jsonl"]
    assert choose_files(names, CARD, ("all",), "d") == ["other/a.jsonl", "plain/train-0.jsonl"]
    with pytest.raises(ConfigError, match="no subset wrong; there are plain, other"):
        choose_files(names, CARD, ("wrong",), "d")
    with pytest.raises(ConfigError, match=r"has several subsets; add :NAME or :all \(there are plain, other\)"):
        choose_files(names, CARD.replace("  default: true\n", ""), (), "d")


def test_subsets_by_name() -> None:
    names = ["en/train.jsonl", "en/test.jsonl", "zh/train.jsonl", "de.jsonl"]
    assert choose_files(names, "", ("en",), "d") == ["en/train.jsonl"]
    assert choose_files(names, "", ("de", "zh"), "d") == ["de.jsonl", "zh/train.jsonl"]
    with pytest.raises(ConfigError, match="no subset fr; there are en, zh"):
        choose_files(names, "", ("fr",), "d")
    with pytest.raises(ArtifactError, match="files of formats jsonl, parquet may hold the same rows; name the files"):
        choose_files(["a.jsonl", "a.parquet"], "", (), "d")
    with pytest.raises(ArtifactError, match="no data files in it"):
        choose_files(["a.py"], "", (), "d")


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file or folder; for a hub write hf:owner/name") as caught:
        resolve("owner/name")
    assert caught.value.code == 66
    (tmp_path / "x.pkl").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"unknown file format '.pkl'; known are .arrow"):
        resolve(str(tmp_path / "x.pkl"))
    path = write_jsonl(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(ConfigError, match="a file has no subsets; drop :a"):
        resolve(f"{path}:a")


# --- chunks -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(1, 30))
def test_chunks_are_those_of_the_native_rule(blocks: list[bytes], chunk_bytes: int) -> None:
    data = b"".join(blocks).replace(b"\x00", b"\n")
    at, pieces = 0, []
    for block in blocks:
        pieces.append(data[at : at + len(block)])
        at += len(block)
    expected = [data[start:end] for start, end in _native.chunk_bounds(data, 0, chunk_bytes, True)]
    assert list(cut(iter(pieces), chunk_bytes, 10_000)) == expected


def test_chunks_number_lines_and_records(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    found = rows_of(open_sources([str(path)], chunk_bytes=500))
    assert found == [("x.jsonl", 2 * i + 1, row) for i, row in enumerate(ROWS)]
    chunks = list(open_sources([str(path)], chunk_bytes=500).chunks())
    assert len(chunks) > 10
    assert b"".join(chunk.data for chunk in chunks) == path.read_bytes()


# --- counts, mixes, splits --------------------------------------------------------------------------------------------


def test_count_repeats_whole_then_samples(tmp_path: Path) -> None:
    """The worked example of ms-swift: 10 rows with #25 are all rows twice, then 5 others."""
    path = write_jsonl(tmp_path / "x.jsonl", ROWS[:10])
    found = [row for _, _, row in rows_of(open_sources([f"{path}#25"], chunk_bytes=200))]
    assert found[:20] == ROWS[:10] * 2
    rest = [ROWS.index(row) for row in found[20:]]
    assert len(set(rest)) == 5 and set(rest) < set(range(10))
    assert rest == [ROWS.index(row) for row in [r for _, _, r in rows_of(open_sources([f"{path}#5"]))]]


def test_count_samples_without_replacement_over_files(tmp_path: Path) -> None:
    for i in range(4):
        write_jsonl(tmp_path / "d" / f"{i}.jsonl", ROWS[i * 25 : i * 25 + 25])
    found = rows_of(open_sources([f"{tmp_path / 'd'}#30"], chunk_bytes=300))
    places = [(name, line) for name, line, _ in found]
    assert len(set(places)) == 30 and places == sorted(places)
    assert {name for name, _ in places} == {f"d/{i}.jsonl" for i in range(4)}
    assert found == rows_of(open_sources([f"{tmp_path / 'd'}#30"], chunk_bytes=3000))
    assert found != rows_of(open_sources([f"{tmp_path / 'd'}#30"], seed=1))


def test_count_of_converted_formats(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    found = [rows_of(open_sources([f"{tmp_path / name}#17"])) for name in ("x.jsonl", "x.parquet", "x.json")]
    assert [row for *_, row in found[0]] == [row for *_, row in found[1]] == [row for *_, row in found[2]]


@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 2**70))
def test_every_record_is_read_as_often_as_fair(num_records: int, count: int, seed: int) -> None:
    times = selection.resample(np.ones(num_records, np.uint32), count, seed)
    assert times.sum() == count
    assert times.max() - times.min() <= 1


def test_samples_are_even() -> None:
    """Over many seeds each record is taken as often as any other, within five standard deviations."""
    taken = Counter(int(i) for seed in range(2000) for i in selection.sample(20, 5, seed))
    assert all(abs(taken[i] - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75) for i in range(20))


def test_mixes_hold_their_shares(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", ROWS[:60])
    two = write_jsonl(tmp_path / "two.jsonl", ROWS[:30])
    for stop, expected in (("first_exhausted", [10, 30]), ("all_exhausted", [60, 180])):
        data = open_sources([str(one), str(two)], mix=(1, 3), stop=stop)  # type: ignore[arg-type]
        counts = Counter(name for name, _, _ in rows_of(data))
        assert [counts["one.jsonl"], counts["two.jsonl"]] == expected
    data = open_sources([f"{one}#6", str(two)], mix=(0.1, 0.9))
    assert Counter(name for name, _, _ in rows_of(data)) == {"one.jsonl": 3, "two.jsonl": 30}


def test_mix_faults(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ROWS)
    empty = write_jsonl(tmp_path / "e.jsonl", [])
    with pytest.raises(ConfigError, match="mix: 1 weights for 2 datasets; give one each"):
        open_sources([str(path), str(path)], mix=(1,))
    with pytest.raises(ConfigError, match="mix: weights must be above 0, got 0"):
        open_sources([str(path)], mix=(0,))
    with pytest.raises(ConfigError, match="mix: dataset 2 has no rows; leave it out"):
        open_sources([str(path), str(empty)], mix=(1, 1))
    with pytest.raises(ArtifactError, match="has no rows to take 5 from"):
        open_sources([f"{empty}#5"])
    with pytest.raises(ConfigError, match="validation: 1 is not a share of the rows"):
        open_sources([str(path)], validation=1)


def test_split_is_a_partition_that_growth_does_not_move(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ROWS)
    sides = {
        side: rows_of(open_sources([str(path)], validation=0.3, side=side, chunk_bytes=400))  # type: ignore[arg-type]
        for side in ("train", "validation")
    }
    assert 15 < len(sides["validation"]) < 45
    assert sorted([line for _, line, _ in sides["train"] + sides["validation"]]) == list(range(1, 101))
    held = [row for *_, row in sides["validation"]]
    more = write_jsonl(tmp_path / "y.jsonl", [{"new": 1}, *ROWS[50:], {"new": 2}, *ROWS[:50]])
    later = [row for *_, row in rows_of(open_sources([str(more)], validation=0.3, side="validation"))]
    assert all(row in later for row in held)
    assert [row for row in later if "new" not in row and row not in held] == []
    assert rows_of(open_sources([str(path)], validation=0.3)) == rows_of(open_sources([str(path)]))


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_digest_names_content_and_count_not_place(tmp_path: Path) -> None:
    digests = []
    for folder, rows, count in (("a", ROWS, ""), ("b", ROWS, ""), ("c", ROWS[1:], ""), ("d", ROWS, "#5")):
        path = write_jsonl(tmp_path / folder / "x.jsonl", rows)
        (found,) = resolve_inputs("data", f"{path}{count}")
        digests.append(found.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_no_heavy_library_is_loaded(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ROWS)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    program = (
        "import sys\n"
        "from postmill.stages.tokenize.sources import open_sources\n"
        "for path in sys.argv[1:]: list(open_sources([path + '#3']).chunks())\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'polars', 'datasets') if name in sys.modules])\n"
    )
    argv = [sys.executable, "-c", program, str(path), str(tmp_path / "x.parquet")]
    assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout == "[]\n"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    line = json.dumps({"query": "q" * 2000, "response": "a" * 2000}).encode() + b"\n"
    with path.open("wb") as file:
        for _ in range(80):
            file.write(line * 250)
    assert path.stat().st_size > 80e6
    program = (
        "import resource, sys\n"
        "from postmill.stages.tokenize.sources import open_sources\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "size = sum(len(c.data) for c in open_sources([sys.argv[1] + '#1000']).chunks())\n"
        "print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True, text=True)
    size, grown_kib = map(int, run.stdout.split())
    assert size > 80e6
    assert grown_kib < 40 * 1024


def test_source_order_is_that_of_the_references(tmp_path: Path) -> None:
    b, a = write_jsonl(tmp_path / "b.jsonl", ROWS[:1]), write_jsonl(tmp_path / "a.jsonl", ROWS[1:2])
    data = open_sources([str(b), str(a)])
    assert [source.name for source in data.sources] == ["b.jsonl", "a.jsonl"]
    assert [chunk.source for chunk in data.chunks()] == [0, 1]
    assert sources.Dataset is type(data.datasets[0])
