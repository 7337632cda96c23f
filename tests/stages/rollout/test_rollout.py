"""Rollout as a command on a tiny model: what it writes, what decides it, and what a stop leaves."""

import json
import re
import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest
from commands import postmill

torch = pytest.importorskip("torch", reason="generation needs torch")
transformers = pytest.importorskip("transformers")

import tiny_model  # noqa: E402
import warm  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.io.errors import ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.io.rollouts import ROLLOUTS  # noqa: E402
from postmill.io.schemas import ROLLOUTS_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.rollout.config import STAGE, Rollout  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402


def rows(path: Path) -> list[dict]:
    return pa.Table.from_batches(list(TableReader(path / ROLLOUTS, ROLLOUTS_V1))).to_pylist()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollout")
    base = tiny_model.write_model(folder / "base", hidden_size=16, vocab_size=263, num_hidden_layers=1)
    (base / "chat_template.jinja").unlink()
    write_tokenizer(base)
    lines = [{"messages": [{"role": "user", "content": f"say {n}"}], "solution": str(n)} for n in range(4)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = postmill(
        "tokenize", folder / "asks.jsonl", "-m", folder / "base", "--for", "prompt", "-o", folder / "prompts"
    )
    assert done.returncode == 0, done.stderr
    return folder


OPTIONS = {"samples": 3, "max_new_tokens": 5}


def rollout(work, name, **options):
    """A run in this process: torch is loaded once."""
    given = {"prompts": [str(work / "prompts")], "policy": [str(work / "base")]}
    run_stage(STAGE, make(Rollout, **OPTIONS | options), given, work / name, Options(threads=1))
    return work / name


@pytest.fixture(scope="module")
def first(work):
    return rollout(work, "first")


def test_a_row_is_the_prompt_and_what_was_sampled(work, first):
    found = rows(first)
    assert [row["sample"] for row in found] == [0, 1, 2] * 4
    assert len({row["row_id"] for row in found}) == 12
    assert len({row["seed"] for row in found}) == 12
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32).eval()
    for row in found:
        start, end = row["prompt_length"], row["length"]
        assert row["spans"] == [{"start": start, "end": end, "weight": 1.0}]
        assert row["sampled"] == [{"start": start, "end": end, "weights": 0, "turn": 0}]
        assert row["pair_id"] == row["prompt_id"]
        assert json.loads(row["extra"])["solution"] == str(row["line"] - 1)
        assert json.loads(row["prompt"])[0]["content"] == f"say {row['line'] - 1}"
        with torch.no_grad():
            logp = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        expected = [float(logp[t - 1, row["input_ids"][t]]) for t in range(start, end)]
        assert row["logp"] == pytest.approx(expected, abs=1e-5)
    manifest = load_artifact(first, ("rollouts",)).manifest
    assert manifest.counts.kept == 12
    assert manifest.metrics["proof"] == "memory"


def test_samples_depend_on_the_seed_the_prompt_and_their_number_only(work, first):
    def sampled(name, **options):
        return [(row["row_id"], row["input_ids"]) for row in rows(rollout(work, name, **options))]

    before = [(row["row_id"], row["input_ids"]) for row in rows(first)]
    assert sampled("alone", batch_size=1) == before
    assert sampled("fewer", samples=2, prompts_from=1, prompts_count=2) == [before[n] for n in (3, 4, 6, 7)]
    assert [ids for _, ids in sampled("other", seed=1)] != [ids for _, ids in before]
    assert sampled("around", prompts_from=3, prompts_count=2) == before[9:] + before[:3]


def test_rewards_and_packing_take_rollouts_as_they_are(work, first):
    done = postmill("reward", first, "--func", "number", "--func", "repetition", "-o", work / "rewards")
    assert done.returncode == 0, done.stderr
    done = postmill("pack", first, "--row-tokens", "64", "-o", work / "packed")
    assert done.returncode == 0, done.stderr
    reader, found = PackedReader(work / "packed"), rows(first)
    assert len(reader) > 3  # samples of a prompt need not share a bin
    assert sorted(row for index in range(len(reader)) for row in reader.rows(index).tolist()) == list(range(12))
    for index in range(len(reader)):
        packed = reader.bin(index)
        for row, start, end in zip(packed.rows, packed.cu_seqlens, packed.cu_seqlens[1:], strict=False):
            assert packed.input_ids[start:end].tolist() == found[row]["input_ids"]
            weights = [0.0] * found[row]["prompt_length"] + [1.0] * 5
            assert packed.weights[start:end].tolist() == weights
    shown = postmill("show", work / "packed", "-m", work / "base", "-n", "1")
    assert (shown.returncode, "5 trained" in shown.stdout) == (0, True), shown.stderr


def test_a_stopped_run_goes_on_to_the_same_bytes(work, first):
    command = ["rollout", work / "prompts", "-m", work / "base", "--samples", "3", "--max-new-tokens", "5"]
    process = warm.start(*command, "--batch-size", "1", "-o", work / "stopped")
    journal = work / "stopped.checkpoints" / "replies.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.002)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    ended = process.end()
    if ended.returncode == 75:
        assert "answers are saved; run the same command again to go on" in ended.stderr
        assert not (work / "stopped").exists()
    rollout(work, "stopped", batch_size=1)
    assert [row["input_ids"] for row in rows(work / "stopped")] == [row["input_ids"] for row in rows(first)]
    assert not journal.exists()


def test_answers_are_held_to_a_form(work):
    pytest.importorskip("llguidance")
    held = rollout(work, "held", regex="[a-c]{3}", max_new_tokens=9)
    assert all(re.fullmatch("[a-c]{3}", row["output"]) for row in rows(held))
    metrics = load_artifact(held).manifest.metrics
    assert metrics["truncated"] and metrics["finish"] == {"stop": 12}
    schema = '{"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}'
    held = rollout(work, "held-json", json_schema=schema, max_new_tokens=200)
    assert all(json.loads(row["output"])["n"] in (1, 2) for row in rows(held) if row["finish"] == "stop")
    with pytest.raises(ConfigError, match="rollout: regex: unclosed group"):
        rollout(work, "never", regex="(")
    with pytest.raises(ValueError, match="give one"):
        make(Rollout, regex="a", json_schema="{}")
    with pytest.raises(ValueError, match="cat FILE"):
        make(Rollout, json_schema="schema.json")


def test_what_cannot_be_is_said_in_one_line(work):
    with pytest.raises(ValueError, match="samples 3 at temperature 0 would all be the same"):
        make(Rollout, **OPTIONS, temperature=0)
    with pytest.raises(StageError, match="leaves no room for 100000") as caught:
        rollout(work, "never", max_new_tokens=100_000)
    assert caught.value.code == 65
    assert not (work / "never").exists()
