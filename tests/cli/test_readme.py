"""The README's first commands, as they are written there, against a hub on loopback and a model of toy size."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import fake_hub
import pytest
import tiny_model
import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def block(beginning: str) -> list[str]:
    """The lines of the first indented block whose first line begins so."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^ {4}.*\n)+", text, re.M)
    found = next(block for block in blocks if block.strip().startswith(beginning))
    return [line.strip() for line in found.splitlines()]


def test_the_first_three_commands_tune_a_model(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / MODEL
    tiny_model.write_model(repository, vocab_size=263)
    (repository / "chat_template.jinja").unlink()
    tiny_tokenizer.write_tokenizer(repository)
    row = re.search(r"`(\{\"messages\".*?\]\})`", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert row is not None
    work = tmp_path / "work"
    work.mkdir()
    (work / "chats.jsonl").write_text((json.dumps(json.loads(row[1].replace("\n", " "))) + "\n") * 5)
    commands = block(f"postmill get {MODEL}")
    assert len(commands) == 3
    program = [sys.executable, "-P", "-m", "postmill.cli.main"]
    with fake_hub.fake_hub(tmp_path / "hub") as hub:
        environment = os.environ | hub.environment(tmp_path)
        for command in commands:
            argv = [*program, *shlex.split(command)[1:]]
            done = subprocess.run(argv, cwd=work, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (work / "answers" / "report.md").is_file()
    assert not any(".py" in request for request in hub.requests)

    # and what README says that the second runs is what it runs
    plan = [*program, *shlex.split(commands[1])[1:], "--dry-run"]
    done = subprocess.run(plan, cwd=work, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == block("postmill tokenize chats.jsonl")


def test_make_targets_come_with_their_reason() -> None:
    assert [line.split()[:2] for line in block("make demo")] == [["make", "demo"], ["make", "test"]]
