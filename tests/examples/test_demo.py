"""The demo's data: what is asked is held out, and the examples read as what they claim to be."""

import json
import subprocess
from pathlib import Path

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def test_questions_are_held_out() -> None:
    trained = {row["messages"][0]["content"].casefold() for row in lines("identity.jsonl")}
    asked = {row["question"].casefold() for row in lines("questions.jsonl")}
    assert len(trained) == len(lines("identity.jsonl"))
    assert not trained & asked
    assert len(asked) == 15


def test_every_identity_row_names_both_and_no_other_row_does() -> None:
    rows = [row["messages"][1]["content"] for row in lines("identity.jsonl")]
    named = [row for row in rows if "{{NAME}}" in row]
    assert len(named) == 72
    assert all("{{AUTHOR}}" in row for row in named)
    assert not any("{{" in row for row in rows if row not in named)


def test_the_pipe_parses() -> None:
    subprocess.run(["sh", "-n", str(DEMO.parent / "pipe.sh")], check=True)
