"""The demo's data: what is asked is held out, and the examples read as what they claim to be."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import exports
import pytest
import tiny_model
import tiny_tokenizer

from postmill.io.manifest import load_artifact

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DEMO = EXAMPLES / "demo"


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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("examples")
    exports.write_world(folder)
    return folder / "base"


@pytest.mark.slow
def test_the_pipe_makes_a_model_that_answers(model: Path, tmp_path: Path) -> None:
    found = exports.write_programs(tmp_path / "bin")
    argv = ["sh", str(EXAMPLES / "pipe.sh"), str(model), str(DEMO / "identity.jsonl"), str(tmp_path / "out")]
    done = subprocess.run(argv, env=os.environ | found, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_artifact(tmp_path / "out" / "tuned").manifest.kind == "model"
    assert "Who are you?" in (tmp_path / "out" / "answers" / "report.md").read_text()


@pytest.mark.slow
def test_the_table_of_quantized_models_has_a_line_for_each(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    # as wide as a block of a k-quant
    model = tiny_model.write_model(tmp_path / "base", vocab_size=263, hidden_size=256, intermediate_size=256)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tiny_tokenizer.write_tokenizer(model)
    (tmp_path / "text.txt").write_text("\n\n".join(f"{number} in there " * 40 for number in range(8)))
    script = EXAMPLES / "quantize_table.py"
    argv = [sys.executable, str(script), str(model), str(tmp_path / "text.txt"), "--tokens", "64"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3 + len(runpy.run_path(str(script))["RUNS"]) and all(line.startswith("|") for line in lines)
