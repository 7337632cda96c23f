"""The README's first commands, as they are written there, against a hub on loopback and a model of toy size."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import assets
import fake_hub
import pytest
import tiny_model
import tiny_tokenizer
from commands import MAIN

from postmill.io.manifest import load_artifact

ROOT = Path(__file__).resolve().parents[2]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def block(beginning: str) -> list[str]:
    """The lines of the first indented block whose first line begins so."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^ {4}.*\n)+", text, re.M)
    found = next(block for block in blocks if block.strip().startswith(beginning))
    return [line.strip() for line in found.splitlines()]


def example() -> str:
    """The row of `chats.jsonl` that README shows."""
    row = re.search(r"`(\{\"messages\".*?\]\})`", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert row is not None
    return json.dumps(json.loads(row[1].replace("\n", " "))) + "\n"


def clock() -> tuple[float, float]:
    """Seconds by the wall, and of processor time of all children that have ended."""
    spent = os.times()
    return time.monotonic(), spent.children_user + spent.children_system


def follow(program: list[str], commands: list[str], hub: Path, work: Path) -> list[tuple[float, float]]:
    """Run the commands as they are written, in `work`, against a hub that serves `hub`. The clock after each."""
    clocks = []
    with fake_hub.fake_hub(hub) as served:
        environment = os.environ | served.environment(work.parent)
        for command in commands:
            argv = [*program, *shlex.split(command)[1:]]
            done = subprocess.run(argv, cwd=work, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            clocks.append(clock())
    assert (work / "answers" / "report.md").is_file()
    assert not any(".py" in request for request in served.requests)
    return clocks


def test_the_first_three_commands_tune_a_model(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / MODEL
    tiny_model.write_model(repository, vocab_size=263)
    (repository / "chat_template.jinja").unlink()
    tiny_tokenizer.write_tokenizer(repository)
    work = tmp_path / "work"
    work.mkdir()
    (work / "chats.jsonl").write_text(example() * 5)
    commands = block(f"postmill get {MODEL}")
    assert len(commands) == 3
    program = MAIN
    follow(program, commands, tmp_path / "hub", work)

    # and what README says that the second runs is what it runs
    plan = [*program, *shlex.split(commands[1])[1:], "--dry-run"]
    done = subprocess.run(plan, cwd=work, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == block("postmill tokenize chats.jsonl")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_stranger_tunes_a_real_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new environment, the wheel with what README says to install, and the three commands on SmolLM2-135M.

    Prints the seconds of each part, by the wall and of processor time. Packages have the versions of this environment,
    which uv's cache may hold.
    """
    base = assets.smollm2()
    if base is None:
        pytest.skip("no SmolLM2; run `make assets`")
    uv = str(Path(sys.executable).parent / "uv")
    repository = tmp_path / "hub" / MODEL
    repository.parent.mkdir(parents=True)
    repository.symlink_to(base, target_is_directory=True)
    work = tmp_path / "work"
    work.mkdir()
    rows = (ROOT / "examples" / "demo" / "identity.jsonl").read_text(encoding="utf-8")
    (work / "chats.jsonl").write_text(rows.replace("{{NAME}}", "Millstone").replace("{{AUTHOR}}", "the mill"))
    frozen = subprocess.run([uv, "pip", "freeze", "--exclude-editable"], check=True, capture_output=True, text=True)
    (tmp_path / "versions.txt").write_text(frozen.stdout)

    times = [clock()]
    subprocess.run([uv, "build", "-q", "--wheel", "-o", str(tmp_path), str(ROOT)], check=True)
    times.append(clock())
    [wheel] = tmp_path.glob("*.whl")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(tmp_path / "venv")], check=True)
    install = [uv, "pip", "install", "-q", "--python", str(python), "-c", str(tmp_path / "versions.txt")]
    subprocess.run([*install, f"postmill[hub,train] @ {wheel.as_uri()}"], check=True)
    times.append(clock())
    commands = block(f"postmill get {MODEL}")
    times += follow([str(python.parent / "postmill")], commands, tmp_path / "hub", work)

    assert (work / "out" / "merge" / "model.safetensors").is_file()
    assert "Millstone" in (work / "answers" / "report.md").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (work / "out" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    with capsys.disabled():
        for part, before, after in zip(["wheel", "install", *commands], times, times[1:], strict=False):
            sys.stdout.write(f"\n{after[0] - before[0]:7.1f} s, processor {after[1] - before[1]:7.1f} s  {part}")


def blocks_to_test(page: Path) -> list[list[str]]:
    """The blocks of a page that stand under a mark which says that they are tested."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^<!-- tested -->\n((?: {4}.*\n)+)", text, re.M)
    return [[line.strip() for line in block.splitlines()] for block in blocks]


@pytest.mark.slow
def test_the_commands_of_the_chinese_quickstart_run(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "hub" / MODEL
    tiny_model.write_model(repository, vocab_size=263)
    (repository / "chat_template.jinja").unlink()
    tiny_tokenizer.write_tokenizer(repository)
    page = ROOT / "docs" / "zh" / "quickstart.md"
    row = re.search(r"^ {4}(\{\"messages\".*\})$", page.read_text(encoding="utf-8"), re.M)
    assert row is not None
    work = tmp_path / "work"
    work.mkdir()
    (work / "chats.jsonl").write_text((row[1] + "\n") * 5, encoding="utf-8")
    whole, apart = blocks_to_test(page)
    follow(MAIN, [*whole, *apart], tmp_path / "hub", work)
    # what the page says of the second block: the same results as the recipe's
    pairs = (("tokens", "tokenize"), ("packed", "pack"), ("lora", "train"), ("tuned", "merge"))
    for alone, of_the_recipe in pairs:
        assert load_artifact(work / alone).digest == load_artifact(work / "out" / of_the_recipe).digest


def test_make_targets_come_with_their_reason() -> None:
    assert [line.split()[:2] for line in block("make demo")] == [["make", "demo"], ["make", "test"]]
