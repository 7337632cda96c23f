"""Several ranks on gloo: what one rank learns, whole or in shards; one checkpoint, one way to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from forks import fork_ranks, wait_code  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from postmill.io.errors import ConfigError  # noqa: E402
from postmill.io.manifest import load_artifact, verify_files  # noqa: E402
from postmill.stages.options import changed as changed_config  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.parallel.replicated import Replicated  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

FULL = make(Train, tuner="full", lr=1e-2, bins_per_step=4, steps=4, save_every=2, valid_every=1, normalize="weights")
FULL = changed_config(FULL, keep_checkpoints=True)
LORA = changed_config(FULL, tuner=Lora(rank=4, targets=["q_proj", "down_proj"], modules_to_save=["norm"]), lr=3e-2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ranks")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(26, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(5, seed=9))
    return folder


def given(world):
    return {"packed": [str(world / "packed")], "model": [str(world / "base")], "valid": [str(world / "valid")]}


def changed(cfg, **fields):
    return changed_config(cfg, **fields)


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("tuner", "cfg"), [("full", FULL), ("lora", LORA)])
@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_two_ranks_learn_what_one_does(world, tmp_path, tuner, cfg, shard):
    """Losses and gradient norms are those of one rank; so are the weights, up to rounding, and the checkpoints."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_stage(STAGE, cfg, given(world), one, Options(threads=1))
    pids = fork_ranks([changed(cfg, shard=shard)] * 2, given(world), two)
    assert [wait_code(pid) for pid in pids] == [0, 0]
    for x, y in zip(metrics(one), metrics(two), strict=True):
        assert (x["step"], x["trained_tokens"], x["normaliser"]) == (y["step"], y["trained_tokens"], y["normaliser"])
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
        assert y["valid_loss"] == pytest.approx(x["valid_loss"], rel=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-4)
    # the first step has seen no rounding of another: its loss and gradient are held tighter
    first = [metrics(path)[0] for path in (one, two)]
    assert first[1]["loss"] == pytest.approx(first[0]["loss"], rel=1e-6)
    assert first[1]["grad_norm"] == pytest.approx(first[0]["grad_norm"], rel=1e-6)
    name = "model.safetensors" if tuner == "full" else "adapter_model.safetensors"
    for part in ("", ".checkpoints/step-00000002"):
        a, b = (load_file(path.parent / f"{path.name}{part}" / name) for path in (one, two))
        assert a.keys() == b.keys()
        for tensor in a:
            torch.testing.assert_close(a[tensor], b[tensor], rtol=1e-4, atol=2e-5, msg=tensor)
    assert load_artifact(two).manifest.metrics["ranks"] == 2
    assert verify_files(load_artifact(two)) == []


@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_a_signal_to_one_rank_stops_all_and_they_go_on_to_the_same_bytes(world, tmp_path, shard):
    cfg = changed(FULL, shard=shard, steps=40, save_every=0, valid_every=0)
    pids = fork_ranks([cfg] * 2, given(world), tmp_path / "whole")
    assert [wait_code(pid) for pid in pids] == [0, 0]
    target = tmp_path / "run"
    log = tmp_path / "run.checkpoints" / "metrics.jsonl"
    pids = fork_ranks([cfg] * 2, given(world), target)
    end = time.monotonic() + 200
    while time.monotonic() < end and not (log.exists() and log.stat().st_size):
        time.sleep(0.005)
    os.kill(pids[1], signal.SIGTERM)
    assert [wait_code(pid) for pid in pids] == [75, 75]
    saved = list((tmp_path / "run.checkpoints").glob("step-*"))
    assert len(saved) == 1
    assert not target.exists()
    pids = fork_ranks([cfg] * 2, given(world), target)
    assert [wait_code(pid) for pid in pids] == [0, 0]
    assert load_artifact(target).digest == load_artifact(tmp_path / "whole").digest


def leave_often(rank, folder, times):
    """Join a group, learn a step, leave; again and again."""
    for turn in range(times):
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/{turn}", rank=rank, world_size=2)
        ranks = SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu"))
        ranks.prepare, ranks.end_training = (
            torch.nn.parallel.DistributedDataParallel,
            torch.distributed.destroy_process_group,
        )
        layout = Replicated(ranks)
        wrapped = layout.wrap(torch.nn.Linear(4, 4))
        for _ in range(2):
            wrapped(torch.ones(1, 4)).sum().backward()
        torch.distributed.all_reduce(torch.ones(1))
        layout.close()
        del wrapped


def test_leaving_the_group_never_waits_for_itself(tmp_path):
    """Gloo frees its last tensors under Python's lock, which nobody may hold while its threads are joined."""
    pids = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            leave_often(rank, tmp_path, times=60)
            os._exit(0)
        pids.append(pid)
    assert [wait_code(pid) for pid in pids] == [0, 0]


def test_a_checkpoint_of_shards_goes_on_whole(world, tmp_path, capfd):
    """Checkpoints hold whole tensors, so another form or number of ranks may go on from them."""
    whole = tmp_path / "whole"
    run_stage(STAGE, FULL, given(world), whole, Options(threads=1))
    target = tmp_path / "run"
    pids = fork_ranks([changed(FULL, shard="fsdp", save_every=3)] * 2, given(world), target)
    assert [wait_code(pid) for pid in pids] == [0, 0]
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
    run_stage(STAGE, FULL, given(world), target, Options(threads=1))
    assert "ranks was 2, is 1; shard was fsdp, is none): the last bits may differ" in capfd.readouterr().err
    a, b = load_file(whole / "model.safetensors"), load_file(target / "model.safetensors")
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-4, atol=1e-5, msg=name)


def test_ranks_that_were_given_other_work_are_refused(world, tmp_path):
    pids = fork_ranks([FULL, changed(FULL, seed=1)], given(world), tmp_path / "run")
    assert [wait_code(pid) for pid in pids] == [78, 78]
    assert not (tmp_path / "run").exists()


def test_one_rank_has_nobody_to_share_with(world, tmp_path):
    with pytest.raises(ConfigError, match="postmill launch --ranks 2"):
        run_stage(STAGE, changed(FULL, shard="fsdp"), given(world), tmp_path / "run", Options(threads=1))


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_a_launcher_that_wraps_the_model_itself_is_refused(kind):
    from accelerate.utils import DistributedType

    from postmill.stages.train.begin import check_launcher

    with pytest.raises(ConfigError, match=f"accelerate was told to use {kind}; .* pass --shard fsdp"):
        check_launcher(DistributedType[kind].value)
    check_launcher(DistributedType.MULTI_GPU.value)


def launch(world, target, *options):
    argv = [sys.executable, "-m", "postmill.cli.main", "launch", "--ranks", "2", "train", str(world / "packed")]
    argv += ["-m", str(world / "base"), "-o", str(target), "--tuner", "full", *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_launch_has_the_exit_code_of_the_stage(world, tmp_path):
    """75 after a signal, which torchrun would turn into 1; then the path, once; then 2 for what all ranks refuse."""
    options = ["--bins-per-step", "4", "--save-every", "0", "--steps"]
    child = launch(world, tmp_path / "run", *options, "4000")
    log = tmp_path / "run.checkpoints" / "metrics.jsonl"
    end = time.monotonic() + 200
    while time.monotonic() < end and child.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    stdout, stderr = child.communicate(timeout=200)
    assert child.returncode == 75, stderr
    assert stdout == ""
    assert stderr.count("stopped by SIGTERM; checkpoint at step") == 1
    child = launch(world, tmp_path / "other", *options, "2")
    stdout, stderr = child.communicate(timeout=200)
    assert (child.returncode, stdout) == (0, f"{tmp_path / 'other'}\n"), stderr
    assert stderr.count("step 2/2") == 1
    child = launch(world, tmp_path / "bad", "--bins-per-step", "3")
    stdout, stderr = child.communicate(timeout=200)
    assert child.returncode == 2
    assert stderr.strip().endswith("change one of them")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "expected --ranks N before the stage"),
        (["--ranks", "x", "train"], "expected a number from 1 up"),
        (["--ranks", "2"], "no stage to run"),
        (["--ranks", "2", "nope"], "no such stage"),
        (["--ranks", "2", "pack"], "pack runs in one process"),
    ],
)
def test_launch_says_what_it_cannot_do(argv, message):
    from postmill.cli.launch import run

    with pytest.raises(ConfigError, match=message):
        run(argv)


def test_launch_ends_when_a_rank_is_killed(world, tmp_path):
    child = launch(world, tmp_path / "run", "--bins-per-step", "4", "--steps", "400000")
    log = tmp_path / "run.checkpoints" / "metrics.jsonl"
    end = time.monotonic() + 200
    while time.monotonic() < end and child.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    ranks = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, stderr = child.communicate(timeout=200)  # 4,000 steps would take longer
    assert child.returncode not in (0, 75)
    assert "rank 1 was ended by SIGKILL" in stderr or child.returncode == 70
