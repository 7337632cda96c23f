"""Stages chained as real processes, on a model of a few thousand parameters; pipes are started as people start them."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny_model
import tiny_tokenizer
import warm
from commands import MAIN

from postmill.io.manifest import load_artifact, verify_files

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def postmill(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return warm.postmill(*argv, cwd=cwd, env=ENVIRONMENT)


def done(*argv: str, cwd: Path) -> str:
    """Run one command that must succeed; what it printed."""
    result = postmill(*argv, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chats.jsonl`, and `base/`: a tiny Llama with a tokenizer and a template."""
    folder = tmp_path_factory.mktemp("given")
    words = ["the", "in", "her", "there", "then"]
    rows = [{"query": f"say {words[n % 5]}", "response": f"{words[n % 5]} {n % 3}"} for n in range(60)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_model.write_model(folder / "base", vocab_size=263, dtype="bfloat16")
    (folder / "base" / "chat_template.jinja").unlink()
    tiny_tokenizer.write_tokenizer(folder / "base")
    return folder


@pytest.fixture
def here(given: Path, tmp_path: Path) -> Path:
    """A folder of its own with the same inputs."""
    for name in ("chats.jsonl", "base"):
        source = given / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    return tmp_path


def chain(cwd: Path) -> dict[str, str]:
    """Every stage, folder by folder; the digests of what came."""
    small = ["--steps", "3", "--bins-per-step", "2", "--lora.rank", "4", "-q"]
    assert done("tokenize", "chats.jsonl", "-m", "base", "-o", "tokens", "-q", cwd=cwd) == "tokens"
    assert done("pack", "tokens", "-o", "packed", "--row-tokens", "128", "-q", cwd=cwd) == "packed"
    assert done("train", "packed", "-m", "base", "-o", "run", *small, cwd=cwd) == "run"
    assert done("merge", "run", "-m", "base", "-o", "tuned", "-q", cwd=cwd) == "tuned"
    ask = ["--question", "say the", "--max-new-tokens", "4", "-q"]
    assert done("eval", "tuned", *ask, "-o", "answers", cwd=cwd).endswith("answers")
    digests = {}
    for name in ("tokens", "packed", "run", "tuned", "answers"):
        artifact = load_artifact(cwd / name)
        assert verify_files(artifact) == []
        digests[name] = artifact.digest
    return digests


def test_the_whole_chain_repeats_and_moves(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = chain(here)
    assert chain(here) == first  # up to date: nothing is done again
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "with a space"
    elsewhere.mkdir()
    for name in ("chats.jsonl", "base"):
        source = here / name
        shutil.copytree(source, elsewhere / name) if source.is_dir() else shutil.copy(source, elsewhere / name)
    assert chain(elsewhere) == first  # another folder, the same bytes
    lineage = done("lineage", "tuned", cwd=here)
    for kind in ("model", "adapter", "packed", "tokens", "dataset"):
        assert kind in lineage
    assert "trained" in done("show", "tokens", "-n", "1", cwd=here)
    shown = done("show", "run", "--step", "1", cwd=here)
    assert "bin" in shown
    older = json.loads((here / "run" / "manifest.json").read_text())
    older["config"]["a_group_of_old"] = {"gone": 1}  # an option that train has no more
    (here / "run" / "manifest.json").write_text(json.dumps(older))
    assert done("show", "run", "--step", "1", cwd=here) == shown
    assert "<span" in (here / done("show", "packed", "--html", "page.html", cwd=here)).read_text()


def test_diff_names_the_first_option_that_differs(here: Path) -> None:
    for name, scale in (("a", "default"), ("b", "last_round")):
        done("tokenize", "chats.jsonl", "-m", "base", "-o", f"{name}/tokens", "--loss-scale", scale, "-q", cwd=here)
        done("pack", f"{name}/tokens", "-o", f"{name}/packed", "--row-tokens", "128", "-q", cwd=here)
    result = postmill("diff", "a/packed", "b/packed", cwd=here)
    assert (result.returncode, result.stdout) == (1, "tokenize: option loss_scale: 'default' != 'last_round'\n")
    assert postmill("diff", "a/packed", "a/packed", cwd=here).returncode == 0


def test_a_pipe_makes_the_same_bins_as_folders(here: Path) -> None:
    done("tokenize", "chats.jsonl", "-m", "base", "-o", "tokens", "-q", cwd=here)
    done("pack", "tokens", "-o", "packed", "--row-tokens", "128", "-q", cwd=here)
    for _ in range(2):  # the second time, pack is up to date and tokenize must not die of a closed pipe
        first = subprocess.Popen(
            [*MAIN, "tokenize", "chats.jsonl", "-m", "base", "-q"], cwd=here, stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        argv = [*MAIN, "pack", "-", "-o", "piped", "--row-tokens", "128", "-q"]
        second = subprocess.run(argv, cwd=here, stdin=first.stdout, env=ENVIRONMENT, check=False)
        assert first.stdout is not None
        first.stdout.close()
        assert (first.wait(), second.returncode) == (0, 0)
    assert (here / "piped" / "bins.arrow").read_bytes() == (here / "packed" / "bins.arrow").read_bytes()


def test_a_killed_upstream_commits_nothing(here: Path) -> None:
    stream = subprocess.run(
        [*MAIN, "tokenize", "chats.jsonl", "-m", "base", "-q"],
        cwd=here,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        check=True,
    ).stdout
    for cut in (0, 100, len(stream) // 2, len(stream) - 2000):
        argv = [*MAIN, "pack", "-", "-o", "piped", "--row-tokens", "128", "-q"]
        result = subprocess.run(argv, cwd=here, input=stream[:cut], capture_output=True, env=ENVIRONMENT, check=False)
        assert result.returncode == 76, result.stderr
        assert not (here / "piped").exists()


def test_a_closed_stdout_ends_quietly(here: Path) -> None:
    argv, pipe = [*MAIN, "tokenize", "chats.jsonl", "-m", "base", "-q"], subprocess.PIPE
    first = subprocess.Popen(argv, cwd=here, stdout=pipe, stderr=pipe, env=ENVIRONMENT)
    assert first.stdout is not None and first.stderr is not None
    first.stdout.close()
    errors = first.stderr.read()
    assert (first.wait(), errors) == (141, b"")


def test_one_changed_byte_of_data_is_another_key(here: Path) -> None:
    done("tokenize", "chats.jsonl", "-m", "base", "-o", "tokens", "-q", cwd=here)
    text = (here / "chats.jsonl").read_text()
    (here / "chats.jsonl").write_text(text.replace("there", "where", 1))
    result = postmill("tokenize", "chats.jsonl", "-m", "base", "-o", "tokens", "-q", cwd=here)
    assert result.returncode == 73
    assert "input data changed" in result.stderr and "--replace" in result.stderr
    before = load_artifact(here / "tokens").digest
    done("tokenize", "chats.jsonl", "-m", "base", "-o", "tokens", "-q", "--replace", cwd=here)
    assert load_artifact(here / "tokens").digest != before


def test_sigterm_in_training_says_75_and_the_same_command_goes_on(here: Path) -> None:
    done("tokenize", "chats.jsonl", "-m", "base", "-o", "tokens", "-q", cwd=here)
    done("pack", "tokens", "-o", "packed", "--row-tokens", "128", "-q", cwd=here)
    argv = ["train", "packed", "-m", "base", "--steps", "60", "--bins-per-step", "2", "--tuner", "full"]
    done(*argv, "-o", "whole", "-q", cwd=here)
    running = warm.start(*argv, "-o", "run", "--save-every", "1", cwd=here, env=ENVIRONMENT)
    while running.poll() is None and not list((here / "run.checkpoints").glob("step-*/manifest.json")):
        time.sleep(warm.POLL_S)
    running.send_signal(signal.SIGTERM)
    ended = running.end()
    assert ended.returncode == 75, ended.stderr
    done(*argv, "-o", "run", "--save-every", "1", "-q", cwd=here)
    whole, resumed = (here / name / "model.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()
