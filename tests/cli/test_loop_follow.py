"""A loop in three processes: the bytes of one in a single process, whatever is killed; who waits for what is said."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

import pyarrow as pa  # noqa: E402
from tiny_loop import write_world  # noqa: E402

from postmill.cli import loop, others, rounds, status  # noqa: E402
from postmill.cli.loop import PARTS, read_plan  # noqa: E402
from postmill.io.errors import StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.io.rollouts import ROLLOUTS  # noqa: E402
from postmill.io.schemas import ROLLOUTS_V1  # noqa: E402
from postmill.io.table import TableReader  # noqa: E402
from postmill.stages.kept import Kept  # noqa: E402
from postmill.stages.shared.engine import local  # noqa: E402
from postmill.stages.train import model  # noqa: E402

PATIENCE_S = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("follow"))


def words(world, name, *more):
    given = [world / "loop.toml", world / "asks.jsonl", "-m", world / "base", "-o", world / name, "--threads", "1"]
    return [str(word) for word in (*given, *more)]


def settings(world):
    return {"model": [str(world / "base")], "data": [str(world / "asks.jsonl")]}


def digests(folder):
    made = [path.parent for path in sorted(folder.rglob("manifest.json")) if ".checkpoints" not in str(path)]
    return {str(path.relative_to(folder)): load_artifact(path).digest for path in made}


def kill(folder, part, killed):
    """End the process of a part that is not among `killed`, once it has said who it is."""
    path = folder / "status" / f"{part}.json"
    pid = json.loads(path.read_text())["pid"] if path.is_file() else None
    if pid is None or pid in killed:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    killed.add(pid)
    return True


def whole(world, lag):
    """The loop in one process, made once."""
    folder = world / f"whole-{lag}"
    if not (folder / "status.json").is_file():
        assert loop.run(words(world, folder.name, "-q", "--set", f"loop.lag={lag}")) == 0
    return folder


@pytest.mark.parametrize("lag", [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(2, marks=pytest.mark.slow)])
def test_three_processes_make_the_bytes_of_one_whatever_is_killed(world, lag):
    apart = world / f"apart-{lag}"
    command = [sys.executable, "-P", "-m", "postmill.cli.main", "loop"]
    command += words(world, apart.name, "--follow", "all", "-q", "--set", f"loop.lag={lag}")
    killed: set[int] = set()
    todo = list(PARTS)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline:
            todo = [part for part in todo if not kill(apart, part, killed)]
            time.sleep(0.01)
        said, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert len(killed) == 3
    assert "was ended by SIGKILL; it is started again" in errors
    assert said.strip() == str(apart / "rounds" / "00002" / "train")
    assert digests(apart) == digests(whole(world, lag))
    assert (apart / "metrics.jsonl").read_bytes() == (whole(world, lag) / "metrics.jsonl").read_bytes()
    assert status.run([str(apart)]) == 0
    assert set(status.look(apart).parts) == set(PARTS)


def test_what_is_held_between_rounds_is_loaded_once_and_changes_no_byte(world, monkeypatch):
    expected, loads = digests(whole(world, 0)), {"train": 0, "engine": 0}

    def counted(module, name):
        real = module.load_model

        def load(*args, **options):
            loads[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(module, "load_model", load)

    counted(model, "train")
    counted(local, "engine")
    plan = read_plan(world / "loop.toml", settings(world), world / "held")
    held = rounds.Rounds(plan, threads=1)
    held._holding = msgspec.structs.replace(held._options, kept=Kept())
    held.run()
    assert digests(world / "held") == expected
    # the first round samples with the model alone, the second is the first with an adapter
    assert loads == {"train": 1, "engine": 2}


def test_a_lag_samples_with_older_weights_and_loses_no_prompt(world):
    held = {}
    for lag in (0, 1):
        lines = [json.loads(line) for line in (whole(world, lag) / "metrics.jsonl").read_text().splitlines()]
        held[lag] = [line["weights"][0] for line in lines]
        asked = []
        for number in range(3):
            path = whole(world, lag) / "rounds" / f"{number:05d}" / "rollout" / ROLLOUTS
            found = pa.Table.from_batches(list(TableReader(path, ROLLOUTS_V1))).to_pylist()
            asked += [(row["line"], row["sample"]) for row in found]
        assert sorted(asked) == sorted((line, s) for line in (1, 2, 3, 4, 5, 1, 2, 3, 4) for s in range(4))
    assert len(set(held[0])) == 3
    assert held[1][0] == held[1][1] != held[1][2]
    assert held[0][1] == held[1][2]


def test_a_part_that_fails_ends_those_that_wait_for_it(world, monkeypatch):
    plan = read_plan(world / "loop.toml", settings(world), world / "fails")
    waiting = rounds.Rounds(plan, threads=1, part="reward")
    failed = rounds.Rounds(plan, threads=1, part="rollout")
    failed._own.say("rollout", "failed")
    with pytest.raises(StageError, match=r"does not come: rollout failed") as caught, waiting._own:
        waiting._wait(world / "fails" / "rounds" / "00000" / "rollout" / "manifest.json")
    assert caught.value.code == 69


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSTOP, r"rollout has been halted for \d+ s; continue it with SIGCONT"),
        (signal.SIGKILL, "rollout is gone; run the same command again"),
    ],
)
def test_a_part_that_waits_for_one_that_is_halted_or_gone_leaves(world, monkeypatch, number, said):
    monkeypatch.setattr(others, "PATIENCE_S", {"halted": 0.7, "died": 0.7})
    name = f"lost-{number.name}"
    plan = read_plan(world / "loop.toml", settings(world), world / name)
    waiting = rounds.Rounds(plan, threads=1, part="reward")
    pid = os.fork()
    if not pid:
        rounds.Rounds(plan, threads=1, part="rollout")._own.say("rollout")
        signal.pause()
    try:
        place = world / name / "status" / "rollout.json"
        while not place.is_file():
            time.sleep(0.01)
        os.kill(pid, number)
        if number == signal.SIGKILL:
            os.waitpid(pid, 0)
        with pytest.raises(StageError, match=f"rollout/manifest.json: does not come: {said}") as caught:
            waiting._wait(world / name / "rounds" / "00000" / "rollout" / "manifest.json")
        assert caught.value.code == 69
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_part_that_has_yet_to_be_started_is_waited_for(world, monkeypatch):
    """What a loop left that was killed before says nothing of the one that is started now."""
    monkeypatch.setattr(others, "PATIENCE_S", {"halted": 0.0, "died": 0.0})
    folder = world / "again"
    (folder / "status").mkdir(parents=True)
    gone = {"state": "running", "pid": 2**22 - 1, "host": platform.node(), "since": time.time() - 9}
    (folder / "status" / "rollout.json").write_text(json.dumps(gone))
    watch = others.Others(folder, "reward")
    for _ in range(2):
        watch.check(folder / "rounds")
    (folder / "status" / "rollout.json").write_text(json.dumps(gone | {"since": time.time() + 1}))
    with pytest.raises(StageError, match="rollout is gone"):
        watch.check(folder / "rounds")


def test_status_says_who_waits_for_what(world, capsys):
    plan = read_plan(world / "loop.toml", settings(world), world / "waits")
    part = rounds.Rounds(plan, threads=1, part="train")
    part._own.say("", "waiting", waiting_for=world / "waits" / "rounds" / "00001" / "reward" / "manifest.json")
    assert status.run([str(world / "waits")]) == 0
    assert "  train waiting: round 1 of 3, for rounds/00001/reward/manifest.json" in capsys.readouterr().out


def test_a_part_that_waits_is_ended_by_a_signal_with_75(world):
    command = [sys.executable, "-P", "-m", "postmill.cli.main", "loop"]
    command += words(world, "alone", "--follow", "reward", "-q")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + PATIENCE_S
        path = world / "alone" / "status" / "reward.json"
        while time.monotonic() < deadline and not (path.is_file() and "waiting" in path.read_text()):
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75, errors
    assert "run the same command again" in errors
