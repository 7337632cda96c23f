"""A run that was stopped or killed, wherever, and started again, ends with the bytes of one that never was.

Children are forked from this process after torch has loaded: real processes, real signals, no import to wait for.
"""

import json
import os
import random
import shutil
import signal
import time

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import tiny_model  # noqa: E402
from forks import fork_run, wait_code  # noqa: E402
from tuner_laws import digest, stop_at  # noqa: E402

from postmill.io.errors import ArtifactError  # noqa: E402
from postmill.stages.options import changed as changed_config  # noqa: E402
from postmill.stages.options import make  # noqa: E402
from postmill.stages.runner import Options, run_stage  # noqa: E402
from postmill.stages.train.config import STAGE, Train  # noqa: E402
from postmill.stages.train.tuners.lora import Lora  # noqa: E402

STEPS = 6
# dropout, noise, accumulation, several epochs, warm-up: everything that has a state in other trainers
LORA = make(
    Train,
    lr=3e-2,
    bins_per_step=4,
    micro_bins=2,
    steps=STEPS,
    save_every=2,
    neftune_alpha=5.0,
    tuner=Lora(rank=4, dropout=0.2),
)
FULL = make(Train, tuner="full", lr=1e-2, bins_per_step=4, steps=STEPS, save_every=2, neftune_alpha=5.0, schedule="wsd")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, bins for it, and the unbroken runs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("resume")
    base = tiny_model.write_model(folder / "base")
    tiny_model.write_packed(folder / "packed", base, tiny_model.make_rows(26, seed=3))
    tiny_model.write_packed(folder / "valid", base, tiny_model.make_rows(4, seed=9))
    for name, cfg in (("lora", LORA), ("full", FULL)):
        run_stage(STAGE, cfg, given(folder), folder / name, Options(threads=1))
    return folder


def given(world, **ports):
    return {"packed": [str(world / "packed")], "model": [str(world / "base")]} | ports


@pytest.mark.parametrize(("name", "cfg"), [("lora", LORA), ("full", FULL)])
def test_stopped_after_every_step_in_turn(world, tmp_path, name, cfg):
    target = tmp_path / "run"
    for step in range(1, STEPS):
        # each run goes one step on from where the last was stopped
        stop_at(cfg, given(world), target, 1)
        assert (tmp_path / "run.checkpoints" / f"step-{step:08d}" / "manifest.json").is_file()
    run_stage(STAGE, cfg, given(world), target, Options(threads=1))
    assert digest(target) == digest(world / name)
    assert (target / "metrics.jsonl").read_bytes() == (world / name / "metrics.jsonl").read_bytes()


def kill_until_done(world, name, cfg, target, kills, seed):
    """Run, and send each of `kills` at a random moment; then run to the end. Returns the exit codes."""
    dice = random.Random(seed)
    codes = []
    for number in kills:
        pid = fork_run(cfg, given(world), target)
        time.sleep(dice.uniform(0.02, 1.2))
        os.kill(pid, number)
        codes.append(wait_code(pid))
        for path in (target.parent / f"{target.name}.checkpoints").glob("step-*"):
            digest(path)  # whatever has the name of a checkpoint is whole
        # a kill may come between the commit and the end of the process
        assert not target.exists() or digest(target) == digest(world / name)
    codes.append(wait_code(fork_run(cfg, given(world), target)))
    return codes


@pytest.mark.parametrize(("name", "cfg"), [("lora", LORA), ("full", FULL)])
def test_killed_and_terminated_at_random(world, tmp_path, name, cfg):
    kills = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM]
    codes = kill_until_done(world, name, cfg, tmp_path / "run", kills, seed=7)
    assert set(codes) <= {0, 75, -signal.SIGKILL, 143}
    assert digest(tmp_path / "run") == digest(world / name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(10))
def test_killed_and_terminated_at_random_fifty_times(world, tmp_path, seed):
    kills = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL]
    name, cfg = (("lora", LORA), ("full", FULL))[seed % 2]
    codes = kill_until_done(world, name, cfg, tmp_path / "run", kills, seed=100 + seed)
    assert set(codes) <= {0, 75, -signal.SIGKILL, 143}
    assert digest(tmp_path / "run") == digest(world / name)


def test_damaged_checkpoints_are_passed_over(world, tmp_path, capfd):
    target = tmp_path / "run"
    stop_at(FULL, given(world), target, 3)
    stop_at(FULL, given(world), target, 1)
    folders = sorted((tmp_path / "run.checkpoints").glob("step-*"))
    newest = folders[-1] / "optimizer.safetensors"
    data = bytearray(newest.read_bytes())
    data[-9] ^= 1
    newest.write_bytes(data)
    run_stage(STAGE, FULL, given(world), target, Options(threads=1))
    assert "step-00000004 is damaged and passed over" in capfd.readouterr().err
    assert digest(target) == digest(world / "full")


def test_other_options_or_data_are_refused_and_named(world, tmp_path):
    target = tmp_path / "run"
    stop_at(FULL, given(world), target, 2)
    with pytest.raises(ArtifactError, match=r"lr was 0.01, is 0.02, seed was 0, is 4") as error:
        run_stage(STAGE, replace(FULL, lr=2e-2, seed=4, save_every=1), given(world), target, Options(threads=1))
    assert error.value.code == 78
    with pytest.raises(ArtifactError, match="input packed changed") as error:
        run_stage(STAGE, FULL, given(world, packed=[str(world / "valid")]), target, Options(threads=1))
    assert error.value.code == 78
    run_stage(
        STAGE, replace(FULL, save_every=5, keep_last=1, keep_checkpoints=True), given(world), target, Options(threads=1)
    )
    left = [p.name for p in sorted((tmp_path / "run.checkpoints").glob("step-*"))]
    assert left == ["step-00000005"]
    assert (target / "model.safetensors").read_bytes() == (world / "full" / "model.safetensors").read_bytes()
    run_stage(STAGE, replace(FULL, seed=4), given(world), tmp_path / "other", Options(threads=1))
    run_stage(STAGE, replace(FULL, seed=4), given(world), target, Options(threads=1, force=True))
    assert digest(target) == digest(tmp_path / "other")


def replace(cfg, **changes):

    return changed_config(cfg, **changes)


def test_best_checkpoints_are_kept(world, tmp_path):
    cfg = replace(FULL, save_every=0, valid_every=1, keep_best=2, keep_last=1)
    run_stage(STAGE, cfg, given(world, valid=[str(world / "valid")]), tmp_path / "run", Options(threads=1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = sorted(range(STEPS), key=lambda i: lines[i]["valid_loss"])[:2]
    kept = {p.name for p in (tmp_path / "run.checkpoints").glob("step-*")}
    assert kept == {f"step-{i + 1:08d}" for i in best}


def test_checkpoints_are_few_while_it_runs_and_gone_when_it_is_done(world, tmp_path, monkeypatch):
    from postmill.stages.train import checkpoint

    seen, save = [], checkpoint.save

    def watched(out, *args, **options):
        seen.append(len(list(out.checkpoints.glob("step-*"))))
        return save(out, *args, **options)

    monkeypatch.setattr(checkpoint, "save", watched)
    cfg = replace(FULL, save_every=1, keep_last=2)
    run_stage(STAGE, cfg, given(world), tmp_path / "run", Options(threads=1))
    assert seen == [0, 1, 2, 2, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert digest(tmp_path / "run") is not None
    run_stage(STAGE, replace(cfg, keep_checkpoints=True), given(world), tmp_path / "kept", Options(threads=1))
    assert len(list((tmp_path / "kept.checkpoints").glob("step-*"))) == 2


def test_checkpoints_stay_until_the_result_is_in_place(world, tmp_path, monkeypatch):
    from postmill.io.commit import Staging

    commit = Staging.commit

    def full(self, manifest, **options):
        if manifest.kind == "model":
            raise OSError(28, "No space left on device", str(self.path))
        return commit(self, manifest, **options)

    monkeypatch.setattr(Staging, "commit", full)
    with pytest.raises(ArtifactError) as error:
        run_stage(STAGE, FULL, given(world), tmp_path / "run", Options(threads=1))
    assert error.value.code == 74
    assert len(list((tmp_path / "run.checkpoints").glob("step-*"))) == 2
    monkeypatch.undo()
    run_stage(STAGE, FULL, given(world), tmp_path / "run", Options(threads=1))
    assert digest(tmp_path / "run") == digest(world / "full")


def test_up_to_date_and_equal_elsewhere(world, tmp_path):
    outcome = run_stage(STAGE, FULL, given(world), world / "full", Options(threads=1))
    assert outcome.status == "up-to-date"
    moved = tmp_path / "moved"
    for name in ("base", "packed", "packed-tokens"):
        shutil.copytree(world / name, moved / name)
    run_stage(STAGE, FULL, given(moved), tmp_path / "run", Options(threads=1))
    assert digest(tmp_path / "run") == digest(world / "full")


def test_what_may_change_the_last_bits_is_said(world, tmp_path, capfd):
    """The run goes on with other numbers of bins at a time, or kernels; that its bytes may differ is no surprise."""
    stop_at(FULL, given(world), tmp_path / "run", 3)
    other = changed_config(FULL, micro_bins=4, gradient_checkpointing=True, save_every=1)
    run_stage(STAGE, other, given(world), tmp_path / "run", Options(threads=1))
    [line] = [line for line in capfd.readouterr().err.splitlines() if "last bits" in line]
    said = "batch.micro_bins was 1, is 4; compute.gradient_checkpointing was False, is True"
    assert line == f"train: warning: resumed under other conditions ({said}): the last bits may differ"
