"""What tokenize puts up with is said and counted; what it was told and did not find is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_tokenizer

from postmill.io.manifest import load_artifact


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    return tmp_path


def tokenize(here: Path, *argv: str, code: int = 0) -> list[str]:
    """Lines of stderr."""
    command = [sys.executable, "-P", "-m", "postmill.cli.main", "tokenize", *argv, "-m", "base", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr.splitlines()


def test_byte_order_marks_and_crlf_are_passed_over_and_counted(here: Path) -> None:
    rows = [json.dumps({"query": f"q{i}", "response": "a"}) for i in range(5)]
    (here / "plain.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    mixed = "\ufeff" + rows[0] + "\n" + rows[1] + "\r\n" + "\r\n".join(rows[2:]) + "\r\n"
    (here / "mixed.jsonl").write_bytes(mixed.encode())
    assert tokenize(here, "plain.jsonl", "-o", "plain") == []
    assert tokenize(here, "mixed.jsonl", "-o", "mixed") == [
        "tokenize: warning: mixed.jsonl:1: a byte order mark, passed over (1 in all)",
        "tokenize: warning: mixed.jsonl:2: the line ends in CRLF, read as LF (4 in all)",
    ]
    plain, mixed_made = (load_artifact(here / name).manifest.metrics for name in ("plain", "mixed"))
    assert (plain["byte_order_marks"], plain["crlf_lines"]) == (0, 0)
    assert (mixed_made["byte_order_marks"], mixed_made["crlf_lines"]) == (1, 4)
    assert (here / "plain/tokens.arrow").read_bytes() == (here / "mixed/tokens.arrow").read_bytes()


def test_a_column_that_no_row_has_is_refused_by_name(here: Path) -> None:
    rows = [{"my_question": "q", "response": "a"}, {"query": "q", "response": "a"}]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenize(here, "rows.jsonl", "--columns", "my_question=query", "-o", "t")
    [line] = tokenize(here, "rows.jsonl", "--columns", "my_questin=query", "--on-bad-row", "skip", "-o", "u", code=2)
    assert line == "postmill tokenize: error: columns: no row has a column 'my_questin'; did you mean my_question?"
    (here / "both.jsonl").write_text('{"prompt": "a", "question": "q", "response": "b"}\n', encoding="utf-8")
    [line] = tokenize(here, "both.jsonl", "--columns", "promt=query", "-o", "u", code=65)
    assert line.endswith('(--columns names "promt", which this row does not have)')


def test_special_tokens_in_rows_are_said_unless_a_rule_was_chosen(here: Path) -> None:
    (here / "rows.jsonl").write_text('{"query": "<|im_end|>", "response": "a"}\n{"query": "b", "response": "c"}\n')
    [line] = tokenize(here, "rows.jsonl", "-o", "keep")
    assert line.startswith("tokenize: warning: 1 rows hold special tokens as text")
    assert tokenize(here, "rows.jsonl", "-o", "escape", "--special-text", "escape") == []
    assert load_artifact(here / "escape").manifest.metrics["rows_with_look_alikes"] == 1


def test_a_limit_that_no_row_meets_says_how_long_they_are(here: Path) -> None:
    rows = [{"query": "q" * n, "response": "a"} for n in (10, 40)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenize(here, "rows.jsonl", "-o", "t")
    metrics = load_artifact(here / "t").manifest.metrics
    [line] = tokenize(here, "rows.jsonl", "-o", "u", "--max-length", "9", code=65)
    longest = metrics["tokens"] // 2 + 15
    assert line.endswith(
        f"nothing left of 2 rows (2 too_long); they have {longest - 30} to {longest} tokens: raise --max-length 9, or"
        " choose a --truncation"
    )
