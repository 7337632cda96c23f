"""PPO as stages against TRL's PPOTrainer on one batch: values, advantages, returns, and both models after the updates.

TRL had it, as experimental, until 1.12; that version is fetched and run by a process of its own. Answers are as long as
they may be: of one that stops earlier, TRL counts one token more, behind its end, and puts the reward there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from assets import trl_with_ppo

torch = pytest.importorskip("torch", reason="training needs torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from agreement import against  # noqa: E402
from tiny_tokenizer import write_tokenizer  # noqa: E402

from postmill.io.rollouts import REWARDS, ROLLOUTS  # noqa: E402
from postmill.io.schemas import REWARDS_V1, ROLLOUTS_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.pack.config import STAGE as PACK  # noqa: E402
from postmill.stages.pack.config import Pack  # noqa: E402
from postmill.stages.reward.config import STAGE as REWARD  # noqa: E402
from postmill.stages.reward.config import Reward  # noqa: E402
from postmill.stages.rollout.config import STAGE as ROLLOUT  # noqa: E402
from postmill.stages.rollout.config import Rollout  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.score.config import STAGE as SCORE  # noqa: E402
from postmill.stages.score.config import Score  # noqa: E402
from postmill.stages.tokenize.config import STAGE as TOKENIZE  # noqa: E402
from postmill.stages.tokenize.config import Tokenize  # noqa: E402
from postmill.stages.train.config import STAGE as TRAIN  # noqa: E402
from postmill.stages.train.config import Train  # noqa: E402

SIDE = Path(__file__).resolve().parents[3] / "trl_ppo_side.py"
PAD = 263
"""An id that no row has."""
GIVEN = {"pad": PAD, "epochs": 2, "lr": 0.3, "critic_lr": 0.5, "vf_coef": 0.1, "temperature": 0.8}
GAE = {"kl_coef": 0.05, "gamma": 0.97, "lam": 0.9}


def artifact(stage, cfg, path, **ports):
    run_stage(stage, cfg, {name: [str(p) for p in paths] for name, paths in ports.items()}, path, Options(threads=1))
    return path


def table(path, name, schema):
    return pa.Table.from_batches(list(TableReader(path / name, schema))).to_pylist()


def write_models(folder):
    """A policy, a reference, a critic and a reward model, each with weights of its own."""
    size = {"hidden_size": 16, "vocab_size": 263, "num_hidden_layers": 2}
    for seed, name in enumerate(("policy", "ref")):
        tiny_model.write_model(folder / name, seed=seed, **size)
    for seed, name in enumerate(("value", "reward"), 2):
        tiny_model.write_model(folder / name, seed=seed, **size)
        kind = (
            "TokenClassification" if name == "value" else "SequenceClassification"
        )  # TRL reads its layer all the same
        model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder / name, num_labels=1)
        torch.manual_seed(seed)
        model.score.weight.data.normal_(0, 0.5)
        model.save_pretrained(folder / name)
    for name in ("policy", "ref", "value", "reward"):
        (folder / name / "chat_template.jinja").unlink(missing_ok=True)
        write_tokenizer(folder / name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The batch, and what both make of it."""
    trl = trl_with_ppo()
    if trl is None:
        pytest.skip("trl==1.12.0 cannot be fetched")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ppo")
    write_models(folder)
    asks = [{"messages": [{"role": "user", "content": "n" * n}]} for n in range(12)]
    (folder / "asks.jsonl").write_text("".join(json.dumps(ask) + "\n" for ask in asks))
    policy = [folder / "policy"]
    prompts = artifact(
        TOKENIZE, Tokenize(for_="prompt"), folder / "prompts", data=[folder / "asks.jsonl"], model=policy
    )
    cfg = make(Rollout, samples=1, max_new_tokens=7, temperature=GIVEN["temperature"], seed=3)
    rollouts = artifact(ROLLOUT, cfg, folder / "rollouts", prompts=[prompts], policy=policy)
    rows = table(rollouts, ROLLOUTS, ROLLOUTS_V1)
    assert {row["finish"] for row in rows} == {"length"}
    ids = [(row["input_ids"][: row["prompt_length"]], row["input_ids"][row["prompt_length"] :]) for row in rows]
    most = max(len(prompt) for prompt, _ in ids)
    np.savez(
        folder / "batch.npz",
        prompts=np.array([[PAD] * (most - len(prompt)) + prompt for prompt, _ in ids]),
        answers=np.array([answer for _, answer in ids]),
    )
    (folder / "options.json").write_text(json.dumps(GIVEN | GAE))
    environment = os.environ | {"PYTHONPATH": str(trl), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(SIDE), str(folder)], check=True, env=environment)
    judge(folder)
    return folder


def judge(folder):
    """The same by our stages: values, divergence, rewards, advantages; and the bins."""
    rollouts = folder / "rollouts"
    scored = {"rows": [rollouts]}
    values = artifact(SCORE, Score(), folder / "values", model=[folder / "value"], **scored)
    ref = artifact(SCORE, Score(temperature=GIVEN["temperature"]), folder / "refs", model=[folder / "ref"], **scored)
    liked = artifact(SCORE, Score(), folder / "liked", model=[folder / "reward"], **scored)
    cfg = make(Reward, advantage="gae", kl="k1", **GAE)
    ports = {"values": [values], "ref": [ref], "scores": [f"liked={liked}"], "functions": []}
    artifact(REWARD, cfg, folder / "judged", rollouts=[rollouts], **ports)
    artifact(PACK, Pack(row_tokens=96), folder / "packed", tokens=[rollouts])


def train(world, name, model, **options):
    bins = json.loads((world / "packed" / "manifest.json").read_text())["metrics"]["bins"]
    plain = {"tuner": "full", "optimizer": "sgd", "momentum": 0.0, "clip": 0.0, "schedule": "constant", "warmup": 0.0}
    ports = {"packed": [world / "packed"], "model": [world / model], "rewards": [world / "judged"]}
    return artifact(TRAIN, make(Train, **plain, bins_per_step=bins, **options), world / name, **ports)


def moved(world, start, ours, theirs):
    """The largest difference of two models, and how far the farthest of their weights moved; `score.bias` aside."""
    from safetensors.torch import load_file

    before, mine, other = (load_file(world / name / "model.safetensors") for name in (start, ours, theirs))
    names = sorted(set(before) - {"score.bias"})
    assert set(mine) - {"score.bias"} == set(other) == set(names)
    gap = max(float((mine[name] - other[name]).abs().max()) for name in names)
    return gap, max(float((other[name] - before[name]).abs().max()) for name in names)


def test_values_advantages_and_returns_are_those_of_trl(world):
    theirs = np.load(world / "trl.npz")
    rows = table(world / "judged", REWARDS, REWARDS_V1)
    for name in ("values", "advantages", "returns"):
        mine = np.array([row[name] for row in rows])
        assert np.abs(theirs[name]).max() > 0.3
        np.testing.assert_allclose(mine, theirs[name], atol=5e-6, err_msg=name)
        against("gae", "TRL's PPOTrainer on one batch", (mine,), (theirs[name],))
    np.testing.assert_allclose([row["reward"] for row in rows], theirs["scores"], atol=5e-6)


def test_the_policy_after_two_updates_is_that_of_trl(world):
    train(world, "policy-mine", "policy", objective="rl", clip_high=0.2, epochs=2, lr=GIVEN["lr"])
    [first, second] = [json.loads(line) for line in (world / "policy-mine" / "metrics.jsonl").read_text().splitlines()]
    assert first["clipped"] == 0 < second["clipped"]  # the second update is one of clipped ratios
    gap, distance = moved(world, "policy", "policy-mine", "policy-after")
    assert distance > 1e-2
    assert gap < 1e-4 * distance


def test_the_critic_after_an_update_is_that_of_trl(world):
    """One update: ours has a bias in its head, which counts from the second on. `vf_coef` is a factor of the rate."""
    lr = GIVEN["critic_lr"] * GIVEN["vf_coef"]
    train(world, "critic-mine", "value", objective="value", epochs=1, lr=lr)
    gap, distance = moved(world, "value", "critic-mine", "value-after")
    assert distance > 1e-2
    assert gap < 1e-4 * distance
