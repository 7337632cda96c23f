"""A run that starts with the weights of another one."""

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import json  # noqa: E402

import tiny_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from postmill.io.errors import ArtifactError, ConfigError  # noqa: E402
from postmill.stages.options import changed, make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402

ADAPTER, MODEL = "adapter_model.safetensors", "model.safetensors"
ONE = make(Train, bins_per_step=99, epochs=1, lr=1e-2, schedule="constant", warmup=0, rank=4, keep_state=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("from")
    base = tiny_model.write_model(folder / "base", dtype="bfloat16")
    tiny_model.write_model(folder / "other", seed=1)
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(12, seed=3))
    return folder


def train(world, name, cfg, model="base", **given):
    ports = {"packed": [str(world / "packed")], "model": [str(world / model)]} | given
    return run_stage(STAGE, cfg, ports, world / name, Options(threads=1))


@pytest.mark.parametrize(("tuner", "weights"), [("lora", ADAPTER), ("full", MODEL)])
def test_two_runs_of_a_step_are_one_run_of_two(world, tuner, weights):
    """The second step has the moments of the first, and weights that were never rounded."""
    one = changed(ONE, tuner="full") if tuner == "full" else ONE
    train(world, f"{tuner}-whole", changed(one, epochs=2))
    train(world, f"{tuner}-first", one)
    train(world, f"{tuner}-second", one, **{"from": [str(world / f"{tuner}-first")]})
    train(world, f"{tuner}-first-bare", changed(one, keep_state=False))
    train(world, f"{tuner}-bare", one, **{"from": [str(world / f"{tuner}-first-bare")]})
    whole, second, bare = (load_file(world / f"{tuner}-{n}" / weights) for n in ("whole", "second", "bare"))
    assert whole.keys() == second.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=2e-6)
    assert max(float((bare[name].float() - tensor.float()).abs().max()) for name, tensor in whole.items()) > 1e-4
    assert not (world / f"{tuner}-bare" / "optimizer.safetensors").exists()  # readers of weights do not meet it


def test_what_the_first_run_learned_to_stop_with_stays(world):
    train(world, "stops", ONE)
    assert json.loads((world / "stops" / "training.json").read_text())["stop_ids"] == [2]
    rows = tiny_model.make_rows(12, seed=3)
    for row in rows:
        row["turns"] = []
    tiny_model.write_packed(world / "turnless", world / "base", rows)
    ports = {"packed": [str(world / "turnless")], "from": [str(world / "stops")]}
    train(world, "stops-second", ONE, **ports)
    assert json.loads((world / "stops-second" / "training.json").read_text())["stop_ids"] == [2]


def test_weights_that_do_not_fit_are_refused(world):
    train(world, "small", ONE)
    start = {"from": [str(world / "small")]}
    with pytest.raises(ConfigError, match="rank 4, --rank is 8; give the same, or start anew") as caught:
        train(world, "no", changed(ONE, rank=8), **start)
    assert caught.value.code == 2
    with pytest.raises(ConfigError, match="is an adapter, and this tuner trains a model"):
        train(world, "no", changed(ONE, tuner="full"), **start)
    with pytest.raises(ArtifactError, match="trained on the model") as caught:
        train(world, "no", ONE, model="other", **start)
    assert caught.value.code == 78
    with pytest.raises(ArtifactError, match=r"tensors are there or here only, .*; give the same --lora.targets"):
        train(world, "no", changed(ONE, targets=["q_proj"]), **start)
    assert not (world / "no").exists()
