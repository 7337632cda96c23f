"""`tokenize --for prompt`: every shape of row ends where its answer is due, and its answers travel along."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny_tokenizer

from postmill.io.manifest import load_artifact
from postmill.io.schemas import PROMPTS_V1
from postmill.io.table import TableReader

HEAD = "<|im_start|>assistant\n"


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def tokenize(here: Path, rows: list[dict[str, Any]], *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "postmill.cli.main", "tokenize", "rows.jsonl", "-m", "base", "-o", "made"]
    done = subprocess.run(
        [*command, "-q", "--for", "prompt", *argv], check=False, capture_output=True, text=True, cwd=here
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tiny_tokenizer.write_tokenizer(tmp_path / "base")
    return tmp_path


def made(here: Path) -> list[dict[str, Any]]:
    """Rows with their ids as text."""
    from postmill.stages.tokenize.config import Tokenize
    from postmill.stages.tokenize.run import make_encoder
    from postmill.stages.tokenize.tokenizer import choose_templates, load_tokenizer

    model = load_tokenizer(here / "base")
    encoder = make_encoder(Tokenize(), model, choose_templates(model, "", None), [])
    artifact = load_artifact(here / "made", ("prompts",))
    table = pa.Table.from_batches(list(TableReader(artifact.file("prompts.arrow"), PROMPTS_V1)))
    return [{**row, "text": encoder.read(row["input_ids"])} for row in table.to_pylist()]


def test_every_shape_ends_where_the_answer_is_due(here: Path) -> None:
    ask = [{"role": "user", "content": "How many?"}]
    tool = {"type": "function", "function": {"name": "count"}}
    rows: list[dict[str, Any]] = [
        {"messages": [*ask, {"role": "assistant", "content": "Two."}], "solution": "2"},
        {"messages": ask, "tools": [tool], "label": 1},
        {"query": "q", "response": "r", "history": [["a", "b"]], "system": "S"},
        {"prompt": ask, "completion": [{"role": "assistant", "content": "Two."}]},
        {"prompt": "p", "chosen": "c", "rejected": "d"},
        {
            "chosen": [*ask, {"role": "assistant", "content": "c"}],
            "rejected": [*ask, {"role": "assistant", "content": "d"}],
        },
        {"prompt": [*ask, {"role": "assistant", "content": "It is"}]},
        {"text": "Once upon a"},
    ]
    assert "$.tools[0]: " in tokenize(here, rows, code=65).stderr  # the tiny template prints no tools
    tokenize(here, rows, "--unwritten", "allow")
    found = made(here)
    question = turn("user", "How many?") + HEAD
    earlier = turn("system", "S") + turn("user", "a") + turn("assistant", "b") + turn("user", "q") + HEAD
    texts = [
        question,
        question,
        earlier,
        question,
        turn("user", "p") + HEAD,
        question,
        question + "It is",
        "Once upon a",
    ]
    assert [row["text"] for row in found] == texts
    assert all(row["turns"] == [] and row["spans"] == [] and row["trained_tokens"] == 0 for row in found)
    extra = [json.loads(row["extra"] or "{}") for row in found]
    answer = [{"role": "assistant", "content": "Two."}]
    assert extra[0] == {"completion": answer, "solution": "2"}
    assert (extra[1], found[1]["label"], json.loads(found[1]["tools"])) == ({}, 1.0, [tool])
    assert (extra[2], extra[3]) == ({"response": "r"}, {"completion": answer})
    assert extra[4] == {"chosen": "c", "rejected": "d"} and set(extra[5]) == {"chosen", "rejected"}
    messages = [json.loads(row["messages"]) if row["messages"] else None for row in found]
    assert messages[0] == ask and messages[2][0] == {"role": "system", "content": "S"} and messages[7] is None


def test_a_prompt_is_cut_from_its_left_only(here: Path) -> None:
    rows = [{"query": "q" * 50, "response": "r"}]
    tokenize(here, rows, "--max-length", "20", "--truncation", "left")
    [row] = made(here)
    assert row["length"] == 20 and row["text"].endswith("<|im_end|>\n" + HEAD)
    refused = tokenize(here, rows, "--max-length", "20", "--truncation", "right", code=2)
    assert "where the answer is due" in refused.stderr


def test_a_row_that_asks_nothing_is_named(here: Path) -> None:
    refused = tokenize(here, [{"messages": [{"role": "system", "content": "S"}]}], code=65)
    assert "rows.jsonl:1: $.messages: the conversation asks nothing" in refused.stderr


def test_the_system_message_of_the_options_is_in_the_messages(here: Path) -> None:
    tokenize(here, [{"query": "q"}], "--system", "Be brief.")
    [row] = made(here)
    assert row["text"] == turn("system", "Be brief.") + turn("user", "q") + HEAD
    assert [message["role"] for message in json.loads(row["messages"])] == ["system", "user"]
