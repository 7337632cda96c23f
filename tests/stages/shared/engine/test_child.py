"""Servers that are started for one run: they answer as the model itself does, and end with the run, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("uvicorn")

import assets
import peft
from adapters import save_adapter
from tiny_chat import write_chat_model

from postmill.io.errors import ConfigError, StageError
from postmill.io.rollouts import ROLLOUTS
from postmill.io.schemas import EVAL_ITEMS_V1, ROLLOUTS_V1
from postmill.io.table import TableReader
from postmill.stages.eval import config as evals
from postmill.stages.kept import Kept
from postmill.stages.options import make
from postmill.stages.rollout import config as rollouts
from postmill.stages.runner import Options, find_inputs, run_stage
from postmill.stages.shared.engine import child
from postmill.stages.shared.engine.endpoint import Endpoint
from postmill.stages.shared.engine.local import LocalEngine
from postmill.stages.shared.engine.options import Command, Wanted, open_engine
from postmill.stages.shared.engine.protocol import Request, Sampling
from postmill.stages.tokenize.config import STAGE as TOKENIZE
from postmill.stages.tokenize.config import Tokenize

MAIN = f"{sys.executable} -m postmill.cli.main"
OURS = f"{MAIN} serve {{model}} --port {{port}} --log none"
VLLM = Path(__file__).parents[4] / ".cache" / "engines" / "vllm" / "bin" / "python"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, an adapter, and prompts."""
    world = tmp_path_factory.mktemp("child")
    base = write_chat_model(world / "base")
    save_adapter(world / "lora", base, peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "up_proj"]))
    lines = [{"messages": [{"role": "user", "content": f"say {n}"}]} for n in range(3)]
    (world / "asks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"data": [str(world / "asks.jsonl")], "model": [str(base)]}
    run_stage(TOKENIZE, make(Tokenize, for_="prompt"), given, world / "prompts", Options(threads=1))
    return world


def rows(path, schema):
    return pa.Table.from_batches(list(TableReader(path, schema))).to_pylist()


def rollout(world, out, policy="base", **options):
    given = {"prompts": [str(world / "prompts")], "policy": [str(world / policy)]}
    given |= {"model": [str(world / "base")]} if policy == "lora" else {}
    cfg = make(rollouts.Rollout, **{"samples": 3, "max_new_tokens": 6, "temperature": 0.7} | options)
    run_stage(rollouts.STAGE, cfg, given, out, Options(threads=1))
    return rows(out / ROLLOUTS, ROLLOUTS_V1)


def children_of(words):
    """Processes whose command line has these words."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found += [line] if words in line else []
    return found


def wait_until(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_command_answers_as_the_model_does_and_ends_with_the_run(world, tmp_path):
    local = rollout(world, tmp_path / "local")
    child = rollout(world, tmp_path / "child", engine="command", engine_command=OURS)
    for mine, other in zip(local, child, strict=True):
        assert (mine["input_ids"], mine["logp"], mine["finish"]) == (other["input_ids"], other["logp"], other["finish"])
    assert not children_of(f"serve {world / 'base'}")


def test_eval_of_an_adapter_by_a_command(world, tmp_path):
    command = f"{MAIN} serve {{model}} --adapter policy={{adapter}} --port {{port}} --log none"
    (tmp_path / "q.jsonl").write_text('{"id": "q", "question": "word"}\n')
    given = {"tested": [str(world / "lora")], "model": [str(world / "base")], "ask": [str(tmp_path / "q.jsonl")]}
    outputs = []
    for name, options in (("local", {}), ("child", {"engine": "command", "engine_command": command})):
        cfg = make(evals.Eval, max_new_tokens=9, **options)
        run_stage(evals.STAGE, cfg, given, tmp_path / name, Options(threads=1))
        outputs += [row["output_ids"] for row in rows(tmp_path / name / "items.arrow", EVAL_ITEMS_V1)]
    assert outputs[0] == outputs[1]


def test_a_held_server_takes_the_adapter_that_is_wanted(world, monkeypatch):
    """One server for two adapters: each answers as our own engine does with it, and the server ends when it is told."""
    save_adapter(world / "other", world / "base", peft.LoraConfig(r=4, lora_alpha=64, target_modules=["down_proj"]))
    command = f"{MAIN} serve {{model}} --adapter policy={{adapter}} --port {{port}} --log none"
    command += f" --adapter-dir {world} --admin-key-file {{key_file}}"
    started, start = [], child.start_command
    monkeypatch.setattr(child, "start_command", lambda *given: started.append(start(*given)) or started[-1])
    requests, kept = [Request(key=str(n), prompt_ids=[5 + n, 9], seed=n) for n in range(3)], Kept()
    for name in ("lora", "other", "lora"):
        given = {"prompts": [world / "prompts"], "model": [world / "base"], "policy": [world / name]}
        inputs = find_inputs(rollouts.STAGE, {port: list(map(str, paths)) for port, paths in given.items()})
        wanted = Wanted.of([*inputs["model"], *inputs["policy"]], dtype="float32", batch_size=3, threads=1)
        with open_engine(Command(engine_command=command), Endpoint(), wanted, kept) as engine:
            replies = engine.answer(requests, Sampling(max_new_tokens=8))
        mine = LocalEngine(wanted.folders, dtype="float32", batch_size=3, threads=1)
        expected = mine.answer(requests, Sampling(max_new_tokens=8))
        assert [(reply.ids, reply.logp) for reply in replies] == [(reply.ids, reply.logp) for reply in expected]
        assert engine.loaded.digest == wanted.digest
    assert len(started) == 1
    opened = open_engine(Command(engine_command=command), Endpoint(), wanted, kept)
    with pytest.raises(StageError, match="was ended by SIGKILL"), opened as engine:
        started[0]._process.kill()
        engine.answer(requests, Sampling(max_new_tokens=8))
    kept.close()
    assert not children_of(f"serve {world / 'base'}")


def test_without_an_adapter_its_words_are_left_out(world):
    """The first round of a loop may sample with the model alone."""
    words = "serve {model} --adapter policy={adapter} --port {port} --name {adapter}"
    assert child.words_of(words, {"{model}": "m", "{port}": "1"}) == ["serve", "m", "--port", "1"]
    filled = child.words_of(words, {"{model}": "m", "{port}": "1", "{adapter}": "a"})
    assert filled == ["serve", "m", "--adapter", "policy=a", "--port", "1", "--name", "a"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("false {port}", r"ended with 1; mend its command line, it said nothing"),
        (f"{MAIN} serve {{model}}/none --port {{port}}", "no such folder|no such file|66"),
        ("no-such-program {port}", "No such file or directory"),
    ],
)
def test_a_server_that_does_not_start_is_said_with_its_words(world, tmp_path, command, words):
    with pytest.raises(StageError, match=words) as caught:
        rollout(world, tmp_path / "out", engine="command", engine_command=command)
    assert caught.value.code == 69
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_together(world, tmp_path):
    with pytest.raises(ConfigError, match=r"no \{adapter\} to put it; merge it first"):
        rollout(world, tmp_path / "out", policy="lora", engine="command", engine_command=OURS)
    with pytest.raises(ValueError, match=r"has no \{port\}"):
        make(rollouts.Rollout, engine="command", engine_command="serve")
    with pytest.raises(ValueError, match="give one of them"):
        make(rollouts.Rollout, engine="vllm", url="http://127.0.0.1:1")


def test_a_server_ends_with_a_run_that_is_killed(world, tmp_path):
    """Even by SIGKILL, after which the run can do nothing any more."""
    command = [sys.executable, "-m", "postmill.cli.main", "rollout", str(world / "prompts"), "-m", str(world / "base")]
    command += ["--samples", "3", "--max-new-tokens", "6", "--engine", "command", "-o", str(tmp_path / "out")]
    ready = tmp_path / "ready"
    server = f"import pathlib, signal; pathlib.Path('{ready}').touch(); signal.pause()"
    command += ["--engine-command", f'{sys.executable} -c "{server}" {{port}}']
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as run:
        wait_until(lambda: ready.exists() or run.poll() is not None)
        os.kill(run.pid, signal.SIGKILL)
    wait_until(lambda: not children_of(str(ready)))


@pytest.mark.slow
@pytest.mark.skipif(not VLLM.exists(), reason="make test-engines installs vLLM")
@pytest.mark.parametrize("policy", ["base", "lora"])
def test_vllm_gives_the_ids_and_log_probs_of_its_model(tmp_path, policy):
    """What it sampled has the log-probs that our own engine finds for it, at the sampling temperature."""
    (tmp_path / "base").symlink_to(assets.smollm2())
    save_adapter(
        tmp_path / "lora", tmp_path / "base", peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    )
    lines = [{"messages": [{"role": "user", "content": text}]} for text in ("Who are you?", "Count to five.")]
    (tmp_path / "asks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"data": [str(tmp_path / "asks.jsonl")], "model": [str(tmp_path / "base")]}
    run_stage(TOKENIZE, make(Tokenize, for_="prompt"), given, tmp_path / "prompts", Options(threads=1))
    options = {"engine": "vllm", "engine_python": str(VLLM), "max_new_tokens": 48, "samples": 4, "temperature": 0.8}
    sampled = rollout(tmp_path, tmp_path / "out", policy, **options, engine_arguments=["--max-model-len", "1024"])
    folders = [tmp_path / "base", tmp_path / "lora"][: 2 if policy == "lora" else 1]
    engine = LocalEngine(folders, dtype="float32", batch_size=1, threads=1)
    assert {row["finish"] for row in sampled} <= {"stop", "length"}
    for row in sampled:
        ids, start = row["input_ids"], row["prompt_length"]
        for count in range(1, len(ids) - start + 1, 7):
            request = Request(key="k", prompt_ids=ids[: start + count - 1], seed=0)
            again = Sampling(max_new_tokens=1, temperature=0.8, bias={ids[start + count - 1]: 1e4})
            (reply,) = engine.answer([request], again)
            assert reply.ids == [ids[start + count - 1]]
            assert reply.logp[0] == pytest.approx(row["logp"][count - 1], abs=1e-3)
