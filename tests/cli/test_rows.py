"""Rows named by file and line are found at every stage: raw, piped, packed together from several artifacts."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_tokenizer
from commands import MAIN

from postmill.cli.rows import RowName
from postmill.io.ledger import read_ledger
from postmill.io.manifest import load_artifact


def run(here: Path, *argv: str, stdin: bytes = b"", code: int = 0) -> str:
    done = subprocess.run([*MAIN, *argv], cwd=here, input=stdin, capture_output=True, check=False)
    assert done.returncode == code, done.stderr.decode()
    return (done.stdout if code == 0 else done.stderr).decode()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    for name in ("a", "b"):
        rows = [{"query": f"{name}{i}", "response": f"{name} says {i}" * (1 + 9 * (i == 3))} for i in range(1, 5)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_name_is_the_end_of_a_path_or_a_path_that_ends_so() -> None:
    row = {"row_id": bytes.fromhex("ab" * 16), "source": 0, "line": 7}
    for word, fits in [
        ("data/x.jsonl:7", True), ("x.jsonl:7", True), ("/home/me/data/x.jsonl:7", True), ("ABAB", True),
        ("y.jsonl:7", False), ("x.jsonl:8", False), ("a/x.jsonl:7", False), ("ax.jsonl:7", False), ("ac", False),
    ]:  # fmt: skip
        assert RowName(word).fits(row, ["data/x.jsonl"]) == fits, word
    assert not RowName("x.jsonl:7").fits(row | {"source": 1}, ["x.jsonl"])
    assert not RowName("ab").fits(row | {"row_id": None}, ["x.jsonl"])


def test_rows_keep_their_names_through_a_pipe(here: Path) -> None:
    stream = subprocess.run([*MAIN, "tokenize", "a.jsonl", "-m", "base"], cwd=here, stdout=-1, check=True).stdout
    run(here, "pack", "-o", "packed", "--row-tokens", "80", "--on-long", "drop", stdin=stream)
    assert "a.jsonl:3  dropped: too_long" in run(here, "ledger", "why", "a.jsonl:3", "packed")
    assert "kept whole" in run(here, "ledger", "why", "a.jsonl:2", "packed")
    refused = run(here, "show", "packed", "--ranks", "8", code=2)
    assert "a step of 8 ranks takes 8" in refused
    shown = run(here, "show", "packed", "--row", "a.jsonl:2")
    assert "a.jsonl:2" in shown and "[1|a says 2<|im_end|>]" in shown and shown.count("a.jsonl:") == 1
    refused = run(here, "pack", "-o", "x", "--row-tokens", "60", stdin=stream, code=65)
    assert "the longest, a.jsonl:3, has" in refused
    digest = load_artifact(here / "packed").digest
    shutil.rmtree(here / "packed")
    moved = here / "elsewhere"
    moved.mkdir()
    for name in ("a.jsonl", "base"):
        (here / name).rename(moved / name)
    stream = subprocess.run([*MAIN, "tokenize", "a.jsonl", "-m", "base"], cwd=moved, stdout=-1, check=True).stdout
    run(moved, "pack", "-o", "packed", "--row-tokens", "80", "--on-long", "drop", stdin=stream)
    assert load_artifact(moved / "packed").digest == digest, "where the inputs lay is no part of the artifact"
    assert "whole" in run(moved, "verify", "packed")


def test_sources_of_several_artifacts_are_numbered_as_one(here: Path) -> None:
    for name in ("a", "b"):
        run(here, "tokenize", f"{name}.jsonl", "-m", "base", "-o", name)
    run(here, "pack", "a", "b", "-o", "packed", "--row-tokens", "80", "--on-long", "drop")
    assert load_artifact(here / "packed").manifest.metrics["sources"] == ["a.jsonl", "b.jsonl"]
    assert [(row["source"], row["line"]) for row in read_ledger(here / "packed").to_pylist()] == [(0, 3), (1, 3)]
    assert "b.jsonl:3  dropped" in run(here, "ledger", "why", "b.jsonl:3", "packed")
    shown = run(here, "show", "packed", "-n", "9")
    for place in ("a.jsonl:1", "a.jsonl:4", "b.jsonl:1", "b.jsonl:4"):
        assert place in shown
    assert "[1|b says 4<|im_end|>]" in run(here, "show", "packed", "--row", "b.jsonl:4")
    assert "no such row" in run(here, "show", "packed", "--row", "b.jsonl:9", code=66)


def test_raw_rows_are_shown_by_place_and_refused_by_place(here: Path) -> None:
    shown = run(here, "show", "-", "-m", "base", "--row", "-:4", stdin=(here / "a.jsonl").read_bytes())
    assert shown.startswith("-:4  ") and "[1|a says 4<|im_end|>]" in shown
    (here / "bad.jsonl").write_text('{"query": "a"\n')
    assert "error: bad.jsonl:1" in run(here, "show", "bad.jsonl", "-m", "base", code=65)
    assert "no such file" in run(here, "show", "none.jsonl", "-m", "base", code=66)
