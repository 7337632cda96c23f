"""Rows and tokens from a pipe: the same tokens as from files, places that name the pipe, nothing left behind."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_tokenizer

from postmill.io.ledger import read_ledger
from postmill.io.manifest import load_artifact, verify_files

ROWS = [{"query": f"q{i}", "response": "answer " * (i % 9 + 1), "n": str(i)} for i in range(300)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    return tmp_path


def postmill(here: Path, *argv: object, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "postmill.cli.main", *map(str, argv)]
    done = subprocess.run(command, input=stdin, capture_output=True, cwd=here, timeout=120, check=False)
    assert done.returncode == code, done.stderr.decode()
    return done


def tokens(here: Path, name: str) -> bytes:
    artifact = load_artifact(here / name, ("tokens",))
    assert verify_files(artifact) == []
    return (here / name / "tokens.arrow").read_bytes()


def test_rows_from_a_pipe_are_the_rows_of_a_file(here: Path) -> None:
    postmill(here, "tokenize", "rows.jsonl", "-m", "base", "-o", "file", "--dedup", "--val-ratio", "0.1")
    argv = ("-m", "base", "--dedup", "--val-ratio", "0.1")
    postmill(here, "tokenize", "-", *argv, "-o", "pipe", stdin=LINES)
    postmill(here, "tokenize", *argv, "-o", "unnamed", stdin=LINES)
    postmill(here, "tokenize", "-", *argv, "-o", "gzip", stdin=gzip.compress(LINES))
    postmill(here, "tokenize", "-", *argv, "-o", "bom", stdin=b"\xef\xbb\xbf" + LINES)
    assert len({tokens(here, name) for name in ("file", "pipe", "unnamed", "gzip", "bom")}) == 1
    file, pipe = (load_artifact(here / name).manifest for name in ("file", "pipe"))
    assert (file.metrics.pop("sources"), pipe.metrics.pop("sources")) == (["rows.jsonl"], ["-"])
    assert file.metrics == pipe.metrics and file.counts == pipe.counts and file.key != pipe.key
    again = postmill(here, "tokenize", "-", *argv, "-o", "pipe", stdin=LINES)
    assert again.stdout == b"pipe\n"
    changed = postmill(here, "tokenize", "-", *argv, "-o", "pipe", stdin=LINES.replace(b"q7", b"q8"), code=73)
    assert b"--replace" in changed.stderr


@pytest.mark.parametrize("form", ["json", "parquet", "arrow", "ipc"])
def test_the_first_bytes_tell_other_formats(here: Path, form: str) -> None:
    path = here / f"rows.{form}"
    table = pa.Table.from_pylist(ROWS)
    if form == "json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif form == "parquet":
        pq.write_table(table, path)
    elif form == "arrow":
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    postmill(here, "tokenize", path.name, "-m", "base", "-o", "file")
    postmill(here, "tokenize", "-", "-m", "base", "-o", "pipe", stdin=path.read_bytes())
    assert tokens(here, "file") == tokens(here, "pipe")


def test_counts_and_mixes_read_a_pipe_as_they_read_a_file(here: Path) -> None:
    argv = ("--mix", "1,2", "-m", "base")
    postmill(here, "tokenize", "rows.jsonl#50", "rows.jsonl", *argv, "-o", "file")
    postmill(here, "tokenize", "-#50", "rows.jsonl", *argv, "-o", "pipe", stdin=LINES)
    assert tokens(here, "file") == tokens(here, "pipe")
    twice = postmill(here, "tokenize", "-", "-#5", "-m", "base", "-o", "twice", stdin=LINES, code=2)
    assert b"read once" in twice.stderr


def test_places_name_the_pipe(here: Path) -> None:
    bad = LINES + b'{"query": 1}\n' + LINES
    refused = postmill(here, "tokenize", "-", "-m", "base", "-o", "t", stdin=bad, code=65)
    assert b"error: -:301" in refused.stderr and not (here / "t").exists()
    postmill(here, "tokenize", "-", "-m", "base", "-o", "t", "--on-bad-row", "skip", stdin=bad)
    [line] = read_ledger(here / "t").to_pylist()
    assert (line["line"], line["action"]) == (301, "dropped")
    assert postmill(here, "ledger", "why", "-:301", "t").stdout.startswith(b"tokenize: ")
    assert b"no rows" in postmill(here, "tokenize", "-", "-m", "base", "-o", "e", code=65).stderr


def test_tokens_from_a_pipe_are_weighed_again(here: Path) -> None:
    argv = ("-m", "base", "--loss-scale", "all", "-o")
    postmill(here, "tokenize", "rows.jsonl", "-m", "base", "-o", "plain", "--max-length", "60")
    stream = postmill(here, "tokenize", "rows.jsonl", "-m", "base", "--max-length", "60").stdout
    postmill(here, "tokenize", "plain", *argv, "folder")
    postmill(here, "tokenize", "-", *argv, "pipe", stdin=stream)
    assert tokens(here, "folder") == tokens(here, "pipe")
    metrics = load_artifact(here / "pipe").manifest.metrics
    assert metrics["encode_calls"] == 0 and metrics["sources"] == ["rows.jsonl"]
    lost = read_ledger(here / "plain").to_pylist()[0]
    why = postmill(here, "ledger", "why", f"rows.jsonl:{lost['line']}", "pipe").stdout
    assert b"too_long" in why, "what the stream said of dropped rows is kept"
    for cut in (4, 100, len(stream) // 2, len(stream) - 2000):
        refused = postmill(here, "tokenize", "-", *argv, "cut", stdin=stream[:cut], code=76)
        assert b"cut" in refused.stderr and not (here / "cut").exists()
    assert b"pass -o" in postmill(here, "tokenize", "-", *argv, "-", stdin=stream, code=2).stderr
    other = postmill(here, "tokenize", "-", *argv, "x", "--thinking", "strip", stdin=stream, code=2)
    assert b"cannot change without encoding again" in other.stderr


def test_a_pipe_takes_no_more_memory_than_a_file(here: Path) -> None:
    """60 MB of rows, which the process may not hold."""
    rows = (json.dumps({"text": "x" * 60_000}).encode() + b"\n") * 1000
    (here / "long.jsonl").write_bytes(rows)
    script = "import resource, sys; from postmill.cli import main; main.dispatch('tokenize', sys.argv[1:]);" + (
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)"
    )
    peaks = []
    for data in ("long.jsonl", "-"):
        argv = [data, "-m", "base", "-o", f"t{data}", "--threads", "1", "--max-length", "9", "--truncation", "right"]
        command = [sys.executable, "-P", "-c", script, *argv, "-q"]
        done = subprocess.run(command, input=rows, capture_output=True, cwd=here, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 15, peaks
