"""Every form of parallelism and mixtures of them, on gloo: one process's loss, gradients and weights, to rounding."""

import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from forks import fork_ranks, wait_code  # noqa: E402
from parallel_models import COMMON, FAMILIES, write  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.stages.options import changed, make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.parallel.mesh import grid  # noqa: E402
from postmill.stages.train.parallel.options import Parallel  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

# eps: AdamW divides a gradient by its own size, so rounding of what is nearly 0 would be as large as a step. With 1e-5,
# --tp 2 of qwen3-tied is 1.014e-5 away after four steps: the same in every run on one machine, whatever its load, and
# another number where another processor's kernels round otherwise.
STEPS = make(Train, tuner="full", lr=1e-2, bins_per_step=8, steps=4, save_every=0, normalize="weights", eps=1e-4)
ONE = make(Train, tuner="full", optimizer="sgd", momentum=0.0, lr=1.0, clip=0.0, warmup=0.0, bins_per_step=8, steps=1)
"""Its weights after are those before less the gradient."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("forms")
    for family in FAMILIES:
        write(folder / family, family)
    tiny_model.write_packed(folder / "packed", folder / "llama", tiny_model.make_rows(40, seed=3), row_tokens=47)
    return folder


def given(world, family):
    return {"packed": [str(world / "packed")], "model": [str(world / family)]}


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


ALONE = {}


def alone(world, cfg, family):
    """What one process makes of it."""
    key = (family, repr(cfg))
    if key not in ALONE:
        ALONE[key] = world / f"alone-{len(ALONE)}"
        run_stage(STAGE, cfg, given(world, family), ALONE[key], Options(threads=1))
    return ALONE[key]


def check(world, tmp_path, family, ranks, form):
    for name, cfg in (("gradient", ONE), ("steps", STEPS)):
        one, several = alone(world, cfg, family), tmp_path / name
        pids = fork_ranks([changed(cfg, **form)] * ranks, given(world, family), several)
        assert [wait_code(pid) for pid in pids] == [0] * ranks
        for x, y in zip(metrics(one), metrics(several), strict=True):
            assert (x["step"], x["trained_tokens"], x["normaliser"]) == (
                y["step"],
                y["trained_tokens"],
                y["normaliser"],
            )
            assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
            assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-5)
        a, b, base = (load_file(path / "model.safetensors") for path in (one, several, world / family))
        assert a.keys() == b.keys()
        for tensor, want in a.items():
            moved = float((want - base[tensor]).abs().max())
            assert moved > 0, tensor
            off = float((b[tensor] - want).abs().max())
            assert off <= 1e-5 * max(1.0, moved), (name, tensor, off, moved)


QUICK = [("qwen3-tied", 2, {"tp": 2}), ("qwen3", 2, {"cp": 2}), ("qwen3-tied", 2, {"pp": 2})]
ALL = [
    ("llama", 2, {"tp": 2}),
    ("qwen3", 2, {"tp": 2}),
    ("qwen3-moe", 2, {"tp": 2}),
    ("qwen3", 3, {"cp": 3}),
    ("qwen3", 4, {"cp": 4}),
    ("qwen3-tied", 4, {"tp": 2, "cp": 2}),
    ("qwen3", 4, {"tp": 2}),
    ("qwen3", 4, {"tp": 2, "shard": "fsdp"}),
    ("qwen3-tied", 4, {"cp": 2, "shard": "fsdp"}),
    ("qwen3", 4, {"shard": "hsdp", "shard_ranks": 2}),
    ("qwen3-moe", 4, {"tp": 2, "cp": 2, "shard": "fsdp"}),
    ("qwen3-moe", 2, {"ep": 2}),
    ("qwen3-moe", 4, {"ep": 2}),
    ("qwen3-moe", 4, {"ep": 2, "shard": "fsdp"}),
    ("qwen3-moe", 4, {"ep": 4, "cp": 2}),
    ("llama", 2, {"pp": 2}),
    ("qwen3-tied", 3, {"pp": 3}),
    ("qwen3-moe", 4, {"pp": 4}),
    ("qwen3", 4, {"pp": 2}),
    ("qwen3-tied", 4, {"pp": 2, "tp": 2}),
    ("qwen3", 4, {"pp": 2, "cp": 2}),
]
"""cp 3: heads do not divide, so keys are gathered; cp 4: two key heads on four ranks."""


@pytest.mark.parametrize(
    ("family", "ranks", "form"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)]
)
def test_ranks_learn_what_one_does(world, tmp_path, family, ranks, form):
    """tp with Qwen3 has the trap of norms of single heads: eight micro-batches, whose gradients are summed once."""
    check(world, tmp_path, family, ranks, form)


@pytest.mark.parametrize("form", [{"tp": 2}, {"pp": 2}])
def test_an_adapter_is_cut_with_its_layers(world, tmp_path, form):
    also = ["norm"] if "tp" in form else []
    tuner = Lora(rank=4, targets=["q_proj", "o_proj", "down_proj"], modules_to_save=also)
    # from the second step on the first factor has a gradient too; clipped, for the norm of adapters is summed as well
    cfg = changed(ONE, tuner=tuner, steps=3, clip=0.1)
    one, two = alone(world, cfg, "qwen3"), tmp_path / "two"
    pids = fork_ranks([changed(cfg, **form)] * 2, given(world, "qwen3"), two)
    assert [wait_code(pid) for pid in pids] == [0, 0]
    a, b = (load_file(path / "adapter_model.safetensors") for path in (one, two))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-6, msg=name)
    for x, y in zip(metrics(one), metrics(two), strict=True):
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "form"), [(2, {"ep": 2}), (2, {"ep": 2, "shard": "fsdp"}), (4, {"ep": 2})])
def test_an_adapter_of_experts_goes_where_they_are(world, tmp_path, ranks, form):
    stacks = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    cfg = changed(ONE, tuner=Lora(rank=2, targets=["q_proj"], parameters=stacks), steps=3, clip=0.1)
    one, several = alone(world, cfg, "qwen3-moe"), tmp_path / "several"
    pids = fork_ranks([changed(cfg, **form)] * ranks, given(world, "qwen3-moe"), several)
    assert [wait_code(pid) for pid in pids] == [0] * ranks
    a, b = (load_file(path / "adapter_model.safetensors") for path in (one, several))
    assert a.keys() == b.keys() and any("experts" in name for name in a)
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    for x, y in zip(metrics(one), metrics(several), strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(
    "form", [{"tp": 2}, pytest.param({"cp": 2, "shard": "fsdp"}, marks=pytest.mark.slow), {"pp": 2}]
)
def test_a_stopped_run_goes_on_to_the_same_bytes_and_in_another_form(world, tmp_path, form):
    whole, target = tmp_path / "whole", tmp_path / "run"
    cfg = changed(STEPS, keep_checkpoints=True, save_every=2, keep_last=3, **form)
    pids = fork_ranks([cfg] * 2, given(world, "qwen3-tied"), whole)
    assert [wait_code(pid) for pid in pids] == [0, 0]
    checkpoints = target.parent / "run.checkpoints"
    (whole.parent / "whole.checkpoints").rename(checkpoints)
    for path in checkpoints.glob("step-00000004/*"):  # as if killed after step 3
        path.unlink()
    (checkpoints / "step-00000004").rmdir()
    shutil.copytree(checkpoints, tmp_path / "other.checkpoints")
    pids = fork_ranks([cfg] * 2, given(world, "qwen3-tied"), target)
    assert [wait_code(pid) for pid in pids] == [0, 0]
    assert load_artifact(target).digest == load_artifact(whole).digest
    run_stage(STAGE, STEPS, given(world, "qwen3-tied"), tmp_path / "other", Options(threads=1))
    a, b = (load_file(path / "model.safetensors") for path in (whole, tmp_path / "other"))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("form", "ranks", "says"),
    [
        ({"tp": 3}, 4, "4 ranks are not a multiple of 3"),
        ({"shard": "hsdp", "shard_ranks": 3}, 4, "groups of 3 do not divide"),
        ({"ep": 3}, 4, "4 ranks share the tokens"),
        ({"ep": 2, "tp": 2}, 4, "experts are cut as other matrices are"),
        ({"pp": 2, "tp": 2}, 6, "--tp 2 --cp 1 --pp 2: 6 ranks are not a multiple of 4"),
        ({"pp": 2, "shard": "fsdp"}, 4, "--pp 2 --shard fsdp: stages hold their layers whole"),
        ({"pp": 2, "ep": 2}, 4, "--pp 2 --ep 2: stages hold their layers whole"),
    ],
)
def test_ranks_that_cannot_be_dealt_are_refused(form, ranks, says):
    with pytest.raises(ConfigError, match=says):
        grid(Parallel(**form), ranks, ranks_here=ranks)


def test_ranks_are_dealt_neighbours_first():
    """Tensor parallelism has the nearest ranks; a copy of sharded weights lies on one machine."""
    assert grid(Parallel(tp=2, cp=2), 8, ranks_here=4) == (2, 2, 2, 4, 1, 1)
    assert grid(Parallel(shard="hsdp"), 16, ranks_here=8) == (16, 1, 1, 2, 1, 1)
    assert grid(Parallel(shard="hsdp", tp=2), 16, ranks_here=8).shards == 4


def test_heads_that_do_not_divide_are_refused():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from postmill.stages.train.parallel.tensor import check as check_plan

    model = Qwen3ForCausalLM(Qwen3Config(**(COMMON | {"num_hidden_layers": 1})))
    with pytest.raises(ConfigError, match="num_key_value_heads is 2, which 4 does not divide"):
        check_plan(model, 4)
    assert "replicated_with_grad_allreduce" in check_plan(model, 2).values()
