"""Demonstrations beside another loss: their share of each step, whatever is computed at a time, stopped or not."""

import copy
import itertools
import json
import math

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("peft")
pytest.importorskip("postmill._native", reason="native module not built")

import numpy as np  # noqa: E402
import tiny_model  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from tiny_loop import write_world  # noqa: E402
from tuner_laws import STEPS, config, digest, given, load, stop_at  # noqa: E402

from postmill.cli import loop  # noqa: E402
from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.io.packed import PackedReader  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.shared import attention  # noqa: E402
from postmill.stages.shared.forward import Forward  # noqa: E402
from postmill.stages.train.columns import BatchSource  # noqa: E402
from postmill.stages.train.config import STAGE  # noqa: E402
from postmill.stages.train.demonstrations import Demonstrations, Share  # noqa: E402
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.plan import Data, Steps  # noqa: E402
from postmill.stages.train.step import accumulate  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("demonstrations")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(16, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(4, seed=9))
    tiny_model.write_packed(folder / "shown", base, tiny_model.make_rows(12, seed=5))
    return folder


def train(cfg, ports, target):
    run_stage(STAGE, cfg, ports, target, Options(threads=1))
    return target


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def plain_loss(model, reader, bins, *, phi):
    """Sum over rows of weight * phi * nll over trained tokens, each row alone, by the definition."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for index in bins:
        found = reader.bin(int(index))
        for start, end in itertools.pairwise(found.cu_seqlens.tolist()):
            ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
            weights = torch.from_numpy(found.weights[start + 1 : end]).double()
            logp = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
            factor = logp.detach().exp() * (1 - logp.detach().exp()) if phi else 1.0
            total = total - (weights * factor * logp).sum()
            tokens += int((weights != 0).sum())
    return total / tokens


@pytest.mark.parametrize("phi", [False, True])
def test_a_step_is_a_share_of_each_loss(world, phi):
    """CHORD's formula in float64: (1 - mu) of the objective's loss and mu of theirs, each over its own tokens."""
    chord = {"mu": 0.5, "mu_valley": 0.125, "mu_decay": 4, "mu_start": 1, "demonstration_bins": 2, "phi": phi}
    cfg = config("full", bins_per_step=2, **chord)
    kernel = attention.choose("per-row", torch.device("cpu"), torch.float64)
    model = load(world / "base").double()
    model.set_attn_implementation(kernel)
    forward = Forward(model, compute_dtype=torch.float64, backend="reference").train()
    reader, theirs, layout = PackedReader(world / "packed"), PackedReader(world / "shown"), Replicated(Accelerator())
    objective, shown = cfg.objective.build(), Demonstrations(cfg, Data(theirs), 1)
    source, steps = BatchSource(reader, objective.needs), Steps(cfg, reader, 1)
    for number in range(2):
        mu = shown.share(number)
        assert mu == pytest.approx(0.125 + 0.375 * 0.5 * (1 + math.cos(math.pi * (number + 1) / 4)), abs=1e-15)
        model.zero_grad()
        found = accumulate(cfg, forward, Share(objective, 1 - mu), source, steps[number], layout=layout)
        found = shown.add(found, forward, layout, number)
        plain = copy.deepcopy(model)
        plain.set_attn_implementation("sdpa")
        plain.zero_grad()
        bins = Steps(config("full", bins_per_step=2), theirs, 1)[number + 1].bins.ravel()
        other = plain_loss(plain, theirs, bins[bins >= 0], phi=phi)
        loss = (1 - mu) * plain_loss(plain, reader, steps[number].bins.ravel(), phi=False) + mu * other
        loss.backward()
        assert float(found.loss) == pytest.approx(float(loss), rel=1e-10)
        assert float(found.metrics["demonstrations"]) == pytest.approx(float(other), rel=1e-10)
        assert float(found.metrics["mu"]) == mu
        want = dict(plain.named_parameters())
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, want[name].grad, rtol=1e-9, atol=1e-12, msg=name)


def test_a_run_does_not_depend_on_micro_batches_and_goes_on_to_the_same_bytes(world, tmp_path):
    ports = given(world) | {"demonstrations": [str(world / "shown")]}
    options = {"bins_per_step": 2, "mu": 0.3, "mu_warmup": 2, "demonstration_bins": 2}
    cfg = config("lora", rank=2, **options)
    whole = train(cfg, ports, tmp_path / "whole")
    assert [line["mu"] for line in lines(whole)] == [0.0, 0.15, *[0.3] * (STEPS - 2)]
    assert ["demonstrations" in line for line in lines(whole)] == [False, *[True] * (STEPS - 1)]
    stop_at(cfg, ports, tmp_path / "stopped", 2)
    assert digest(train(cfg, ports, tmp_path / "stopped")) == digest(whole)
    wide = train(config("lora", rank=2, **(options | {"micro_bins": 1})), ports, tmp_path / "wide")
    for ours, others in zip(lines(whole), lines(wide), strict=True):
        assert ours["loss"] == pytest.approx(others["loss"], rel=1e-5)
    alone = train(config("lora", rank=2, bins_per_step=2), given(world), tmp_path / "alone")
    none = train(config("lora", rank=2, bins_per_step=2, mu=0.0), ports, tmp_path / "none")
    assert (none / "adapter_model.safetensors").read_bytes() == (alone / "adapter_model.safetensors").read_bytes()
    assert digest(whole) != digest(alone)


def test_a_loop_goes_on_in_the_schedule_and_in_the_demonstrations(tmp_path):
    world = write_world(tmp_path, more="updates = 2")
    chats = [
        {"messages": [{"role": "user", "content": "n" * n}, {"role": "assistant", "content": "ab"}]} for n in (2, 3)
    ]
    (world / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    recipe = (world / "loop.toml").read_text().replace("[prompts]", f'[prompts]\ndata = "{world}/asks.jsonl"')
    shown = f'[said]\nstage = "tokenize"\ndata = "{world}/chats.jsonl"\n[bins]\nstage = "pack"\nrow_tokens = 64\n'
    recipe = shown + recipe.replace(
        'rewards = "reward"\nrank', 'rewards = "reward"\ndemonstrations = "bins"\nmu = 0.4\nmu_warmup = 4\nrank'
    )
    (world / "loop.toml").write_text(recipe)
    words = [str(world / "loop.toml"), "-m", str(world / "base"), "-o", str(world / "out")]
    assert loop.run([*words, "--quiet"]) == 0
    found = [line for line in lines(world / "out") if "mu" in line]
    # the last of two updates of a round: updates 1, 3 and 5
    assert [(line["step"], line["mu"]) for line in found] == [(1, 0.1), (2, 0.4 * 3 / 4), (3, 0.4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "embedding"}, "--demonstrations --objective embedding: its loss is not one of tokens"),
        ({"pp": 2}, "--demonstrations --pp 2: the stages pass one kind of bins"),
        ({"shard": "zero2"}, "--demonstrations --shard zero2: DeepSpeed takes one backward pass a step"),
    ],
)
def test_what_takes_no_second_loss_is_refused(world, tmp_path, options, message):
    from postmill.stages.train.checks import check_demonstrations

    with pytest.raises(ConfigError) as caught:
        check_demonstrations(config("lora", **options))
    assert str(caught.value).startswith(message)


def test_a_decay_says_what_it_falls_to():
    with pytest.raises(ValueError, match="mu_decay 3 and no mu_valley"):
        config("lora", mu_decay=3)


def test_demonstrations_of_another_tokenizer_are_refused(world, tmp_path):
    base = tiny_model.write_model(tmp_path / "base")
    (base / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 2, "content": "<x>", "special": True}]}))
    tiny_model.write_packed(tmp_path / "shown", base, tiny_model.make_rows(4))
    ports = given(world) | {"demonstrations": [str(tmp_path / "shown")]}
    with pytest.raises(ArtifactError) as caught:
        train(config("lora"), ports, tmp_path / "run")
    assert caught.value.code == 78


def test_bins_that_ranks_cannot_share_are_refused(world):
    with pytest.raises(ConfigError) as caught:
        Demonstrations(config("lora", demonstration_bins=3), Data(PackedReader(world / "shown")), 2)
    assert str(caught.value).startswith("--demonstration-bins 3: not a multiple of 2 data ranks")
