"""Kill and starve the stages at every file operation they make: whole or absent, and then the same bytes."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_model
import tiny_tokenizer
import token_tables
import warm
from faults.lab import Lab, open_lab
from faults.laws import clear, digest, survives_full_disk, survives_kills

DATA = tuple(f"postmill.{name}" for name in ("cli.stage_command", "stages.pack.run", "stages.tokenize.run"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab"), *DATA, "postmill.stages.merge.run") as lab:
        yield lab


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of every stage: `chats.jsonl`, `tok/`, `tokens/`, `base/`, `adapter/`."""
    folder = tmp_path_factory.mktemp("given")
    chats = [{"query": f"the {n}", "response": "in " * (n % 5 + 1)} for n in range(40)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    tiny_tokenizer.write_tokenizer(folder / "tok")
    batches = token_tables.to_batches(token_tables.random_rows(0, 40))
    token_tables.write_tokens(folder / "tokens", batches)
    write_adapter(tiny_model.write_model(folder / "base"), folder / "adapter")
    return folder


def write_adapter(base: Path, folder: Path) -> None:
    """A LoRA adapter of PEFT's own making, with weights that change something."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder)


def argv_of(stage: str, given: Path) -> list[str]:
    return {
        "tokenize": ["tokenize", f"{given}/chats.jsonl", "-m", f"{given}/tok", "-q"],
        "pack": ["pack", f"{given}/tokens", "--row-tokens", "64", "-q"],
        "merge": ["merge", f"{given}/adapter", "-m", f"{given}/base", "--parity", "off", "-q"],
    }[stage]


@pytest.mark.parametrize("stage", ["tokenize", "pack", "merge"])
def test_killed_anywhere_leaves_nothing_half(stage: str, lab: Lab, given: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    operations = survives_kills(lab, [*argv_of(stage, given), "-o", f"{folder}/made"], folder, folder / "made", step=2)
    assert operations > 8  # the injector saw the writes: a test that counts nothing proves nothing


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "pack", "merge"])
def test_killed_at_each_operation_leaves_nothing_half(stage: str, lab: Lab, given: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    survives_kills(lab, [*argv_of(stage, given), "-o", f"{folder}/made"], folder, folder / "made")


@pytest.mark.parametrize("stage", ["tokenize", "pack", "merge"])
def test_a_full_or_broken_disk_is_one_line(stage: str, lab: Lab, given: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    survives_full_disk(lab, [*argv_of(stage, given), "-o", f"{folder}/made"], folder, folder / "made", step=3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "pack", "merge"])
def test_killed_at_random_times(stage: str, given: Path, tmp_path: Path) -> None:
    """A hundred real processes, killed at a random moment of their life."""
    folder, output = tmp_path / "out", tmp_path / "out" / "made"
    argv = [sys.executable, "-P", "-m", "postmill.cli.main", *argv_of(stage, given), "-o", str(output)]
    clear(folder)
    started = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    life, expected = time.perf_counter() - started, digest(output)
    moments = random.Random(0)
    for _ in range(100):
        clear(folder)
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
            time.sleep(moments.uniform(0.2, 1.0) * life)
            process.kill()
        if output.exists():
            assert digest(output) == expected
    clear(folder)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    assert digest(output) == expected


def train_argv(packed: Path, base: Path) -> list[str]:
    small = ["--tuner", "full", "--steps", "3", "--bins-per-step", "1", "--save-every", "1", "--lr", "0.01"]
    return ["train", str(packed), "-m", str(base), *small, "-q"]


@pytest.fixture(scope="module")
def train_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with open_lab(tmp_path_factory.mktemp("lab"), *warm.IMPORTS) as lab:
        yield lab


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", [101, pytest.param(7, marks=pytest.mark.slow)])
def test_train_killed_anywhere_goes_on_to_the_same_model(step: int, train_lab: Lab, tmp_path: Path) -> None:
    """Checkpoints and the model itself: killed at any of their writes, the same command ends with equal bytes."""
    base = tiny_model.write_model(tmp_path / "base")
    packed = tiny_model.write_packed(tmp_path / "packed", base, tiny_model.make_rows(12))
    folder = tmp_path / "out"
    argv = [*train_argv(packed, base), "-o", f"{folder}/made"]
    assert survives_kills(train_lab, argv, folder, folder / "made", step=step) > 50
