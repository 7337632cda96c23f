"""What a run decides from its own record: the best validation, an early end, a runaway loss; and its mean weights."""

import json

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from postmill.io.errors import ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Measure, Train  # noqa: E402
from postmill.stages.train.objectives.options import Sft  # noqa: E402
from postmill.stages.train.verdict import is_among_best, is_over, watch  # noqa: E402

from .objectives import laws  # noqa: E402
from .objectives.test_pairs_run import pairs  # noqa: E402


def lines(*losses, every=1):
    return [
        {"step": i + 1, "loss": loss} | ({"valid_loss": loss, "valid_accuracy": loss} if (i + 1) % every == 0 else {})
        for i, loss in enumerate(losses)
    ]


def test_a_run_is_over_when_no_validation_was_better():
    measure = Measure(valid_every=1, patience=2)
    over = [is_over(lines(*[3, 2, 2.5, 2.2, 1.9, 2, 2][:n]), measure) for n in range(8)]
    assert over == [False, False, False, False, True, False, False, True]
    rising = Measure(valid_every=1, patience=2, best="accuracy")
    assert not is_over(lines(1, 2, 3, 4), rising)
    assert is_over(lines(4, 3, 2), rising)
    assert not is_over(lines(4, 3, 2, every=3), rising)


def test_the_best_are_the_lowest_losses_or_the_highest_accuracies():
    assert [is_among_best(lines(*[3, 1, 2, 5][:n]), "loss", 2) for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert [is_among_best(lines(*[3, 1, 2, 5][:n]), "accuracy", 1) for n in (1, 2, 3, 4)] == [True, False, False, True]
    assert not is_among_best(lines(3, 1), "loss", 0)
    with pytest.raises(ConfigError, match="--best recall: the objective does not measure it; there are accuracy, loss"):
        is_among_best(lines(3), "recall", 1)


def test_the_watchdog_barks_when_the_loss_stays_high():
    measure = Measure(watchdog=4.0, watchdog_steps=2)
    watch(lines(9, 3, 9), measure, 0)
    with pytest.raises(StageError, match=r"step 3: the loss was above --watchdog 4 for 2 steps, now 8; .* of step 1"):
        watch(lines(3, 9, 8), measure, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("verdict")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(14, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(8, seed=9))
    tiny_model.write_packed(folder / "pairs", base, pairs(8))
    return folder


def ports(world, packed="packed", valid="valid"):
    given = {"packed": packed, "model": "base", "valid": valid}
    return {port: [str(world / name)] for port, name in given.items()}


def test_a_run_that_only_gets_worse_ends_early_and_keeps_its_best(world, tmp_path):
    cfg = make(Train, tuner="full", lr=0.3, steps=40, bins_per_step=2, valid_every=2, patience=2, keep_best=1)
    outcome = run_stage(STAGE, cfg, ports(world), tmp_path / "run", Options(threads=1))
    found = laws.lines(tmp_path / "run")
    assert len(found) < 40
    assert outcome.manifest.metrics["steps"] == len(found)
    values = {line["step"]: line["valid_loss"] for line in found if "valid_loss" in line}
    [kept] = (tmp_path / "run.checkpoints").glob("step-*")
    assert int(kept.name.partition("-")[2]) == min(values, key=values.get)
    assert load_artifact(kept).manifest.metrics["quality"] == -min(values.values())


def test_validation_measures_what_the_objective_does(world, tmp_path):
    cfg = make(Train, objective="rm", bins_per_step=4, steps=2, valid_every=1, keep_best=1, best="reward_accuracy")
    run_stage(STAGE, cfg, ports(world, "pairs", "pairs"), tmp_path / "run", Options(threads=1))
    assert {"valid_loss", "valid_reward_accuracy", "valid_reward_chosen"} <= laws.lines(tmp_path / "run")[-1].keys()
    with pytest.raises(ConfigError, match="--best recall: the objective does not measure it"):
        cfg = make(Train, objective="rm", bins_per_step=4, steps=2, valid_every=1, keep_best=1, best="recall")
        run_stage(STAGE, cfg, ports(world, "pairs", "pairs"), tmp_path / "no", Options(threads=1))


def test_the_mean_of_weights_is_saved_and_validated_with(world, tmp_path):
    common = {"tuner": "full", "lr": 1e-2, "bins_per_step": 4, "save_dtype": "float32", "schedule": "constant"}
    mean = None
    for steps in range(1, 4):
        cfg = make(Train, steps=steps, warmup=0, **common)
        run_stage(STAGE, cfg, ports(world), tmp_path / f"plain{steps}", Options(threads=1))
        now = load_file(tmp_path / f"plain{steps}" / "model.safetensors")
        mean = mean or load_file(world / "base" / "model.safetensors")
        mean = {name: 0.8 * mean[name] + 0.2 * value for name, value in now.items()}
    cfg = make(Train, steps=3, ema=0.8, warmup=0, **common)
    run_stage(STAGE, cfg, ports(world), tmp_path / "ema", Options(threads=1))
    for name, value in load_file(tmp_path / "ema" / "model.safetensors").items():
        torch.testing.assert_close(value, mean[name], rtol=1e-5, atol=1e-6)
    plain, averaged = (laws.lines(tmp_path / name)[-1] for name in ("plain3", "ema"))
    assert averaged["loss"] == plain["loss"]
    assert averaged["valid_loss"] != plain["valid_loss"]


def test_a_run_with_a_mean_resumes_to_the_same_bytes(world, tmp_path):
    laws.resumes_to_the_same_bytes(Sft(), ports(world), tmp_path, ema=0.9, valid_every=1)
    config = json.loads((tmp_path / "whole" / "manifest.json").read_text())["config"]
    assert config["ema"] == 0.9
