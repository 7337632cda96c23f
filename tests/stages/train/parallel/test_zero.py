"""DeepSpeed's ZeRO as a layout: one process's curve and weights, plain safetensors, bitwise resume, other layouts."""

import json
import shutil
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from forks import fork_ranks, wait_code  # noqa: E402
from parallel_models import write  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.stages.options import changed, make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.checks import check_request  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.parallel.options import Parallel  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

PLACE = Path(__file__).parents[4] / ".cache" / "deepspeed"
FULL = make(Train, tuner="full", lr=1e-2, bins_per_step=8, steps=4, save_every=0, normalize="weights", eps=1e-5)
ADAPTER = changed(FULL, tuner=Lora(rank=4, targets=["q_proj", "o_proj", "down_proj"]), clip=0.1)
CPU = {"offload": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    if not PLACE.is_dir():
        pytest.skip("DeepSpeed is not there; make programs")
    sys.path.append(str(PLACE))
    import deepspeed

    # its collectives for CPUs take minutes to compile; gloo's are there
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("zero")
    write(folder / "base", "qwen3-tied")
    tiny_model.write_packed(folder / "packed", folder / "base", tiny_model.make_rows(40, seed=3), row_tokens=47)
    yield folder
    sys.path.remove(str(PLACE))


def given(world):
    return {"packed": [str(world / "packed")], "model": [str(world / "base")]}


def ranks(world, cfg, target):
    pids = fork_ranks([cfg] * 2, given(world), target)
    assert [wait_code(pid) for pid in pids] == [0, 0]
    return target


def alone(world, cfg, name):
    target = world / f"alone-{name}"
    if not target.exists():
        run_stage(STAGE, cfg, given(world), target, Options(threads=1))
    return target


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def check_equal(one, several, name):
    for x, y in zip(metrics(one), metrics(several), strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-5)
    a, b = (load_file(path / name) for path in (one, several))
    assert a.keys() == b.keys()
    for tensor, want in a.items():
        torch.testing.assert_close(b[tensor], want, rtol=0, atol=2e-5, msg=tensor)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("tuner", "form"),
    [
        ("full", {"shard": "zero2"}),
        pytest.param("full", {"shard": "zero1"}, marks=SLOW),
        pytest.param("full", {"shard": "zero3"}, marks=SLOW),
        pytest.param("full", {"shard": "zero1"} | CPU, marks=SLOW),
        pytest.param("full", {"shard": "zero2"} | CPU, marks=SLOW),
        pytest.param("full", {"shard": "zero3"} | CPU, marks=SLOW),
        pytest.param("adapter", {"shard": "zero2"}, marks=SLOW),
        pytest.param("adapter", {"shard": "zero3"}, marks=SLOW),
    ],
)
def test_ranks_learn_what_one_does(world, tmp_path, tuner, form):
    cfg, name = (FULL, "model.safetensors") if tuner == "full" else (ADAPTER, "adapter_model.safetensors")
    one = alone(world, cfg, tuner)
    two = ranks(world, changed(cfg, **form), tmp_path / "two")
    check_equal(one, two, name)
    a, b = (load_artifact(path).manifest.metrics for path in (one, two))
    assert (a["parameters"], a["trainable_parameters"]) == (b["parameters"], b["trainable_parameters"])


@pytest.mark.parametrize("form", [{"shard": "zero2"}, pytest.param({"shard": "zero3"} | CPU, marks=SLOW)])
def test_a_stopped_run_goes_on_to_the_same_bytes_and_in_another_layout(world, tmp_path, form):
    cfg = changed(FULL, keep_checkpoints=True, save_every=2, keep_last=3, **form)
    whole = ranks(world, cfg, tmp_path / "whole")
    checkpoints = tmp_path / "run.checkpoints"
    (tmp_path / "whole.checkpoints").rename(checkpoints)
    shutil.rmtree(checkpoints / "step-00000004")  # as if killed after step 3
    shutil.copytree(checkpoints, tmp_path / "other.checkpoints")
    assert load_artifact(ranks(world, cfg, tmp_path / "run")).digest == load_artifact(whole).digest
    run_stage(STAGE, FULL, given(world), tmp_path / "other", Options(threads=1))
    a, b = (load_file(path / "model.safetensors") for path in (whole, tmp_path / "other"))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-5, msg=name)


@SLOW
def test_parts_lie_in_files(world, tmp_path):
    """DeepSpeed compiles its reader of files once; it needs libaio."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("libaio is not there")
    AsyncIOBuilder().load(verbose=False)
    form = {"shard": "zero3", "offload": "nvme", "offload_to": str(tmp_path / "fast")}
    two = ranks(world, changed(FULL, **form), tmp_path / "two")
    check_equal(alone(world, FULL, "full"), two, "model.safetensors")
    assert any((tmp_path / "fast").rglob("*.swp"))


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"shard": "zero2", "tp": 2}, "shard zero2: DeepSpeed deals all ranks alike"),
        ({"offload": "cpu"}, "offload cpu: only shard zero1"),
        ({"shard": "zero2", "offload": "nvme", "offload_to": "/x"}, "shard zero2 keeps its parts in memory"),
    ],
)
def test_forms_that_zero_does_not_have_are_refused(form, says):
    with pytest.raises(ValueError, match=says):
        Parallel(**form)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tuner": "adalora"}, "--shard zero2 --tuner adalora: only full and lora"),
        ({"optimizer": "schedule-free"}, "--shard zero2 --optimizer schedule-free"),
        ({"ema": 0.9}, "--shard zero2 --ema"),
        ({"shard": "zero3", "offload": "nvme"}, "--offload nvme and --offload-to DIR go together"),
        ({"offload_to": "/x"}, "--offload nvme and --offload-to DIR go together"),
    ],
)
def test_what_zero_cannot_do_is_refused_before_torch_loads(options, says):
    with pytest.raises(ConfigError, match=says):
        check_request(make(Train, **({"shard": "zero2"} | options)))


def test_without_deepspeed_the_remedy_is_named(world, monkeypatch):
    from postmill.stages.train.parallel import zero

    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'postmill\[deepspeed\]', or use --shard fsdp"):
        zero.Zero(None, Parallel(shard="zero3"))
