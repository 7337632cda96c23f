"""A loop on a tiny model: it learns, a kill at any moment changes no byte, and what cannot be is refused."""

import json
import os
import signal
import time

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

from tiny_loop import RECIPE, write_world  # noqa: E402

from postmill.cli import loop, rounds, status  # noqa: E402
from postmill.cli.chain import RECIPES  # noqa: E402
from postmill.io.errors import ArtifactError, ConfigError, StageError  # noqa: E402
from postmill.io.manifest import load_artifact  # noqa: E402
from postmill.stages.shared.engine.local import LocalEngine  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = write_world(tmp_path_factory.mktemp("loop"))
    run(world=folder, name="whole")
    return folder


def run(world, name, *argv, recipe="loop.toml"):
    place = world / recipe if recipe.endswith(".toml") else recipe
    words = [place, world / "asks.jsonl", "-m", world / "base", "-o", world / name, "--threads", "1", "-q"]
    assert loop.run([str(word) for word in (*words, *argv)]) == 0
    return world / name


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def digests(folder):
    """Of everything that the loop made, by place."""
    made = [path.parent for path in sorted(folder.rglob("manifest.json")) if ".checkpoints" not in str(path)]
    return {str(path.relative_to(folder)): load_artifact(path).digest for path in made}


def test_each_round_samples_with_the_weights_of_the_one_before(world):
    found = lines(world / "whole")
    assert [line["step"] for line in found] == [1, 2, 3]
    assert len({line["weights"][0] for line in found}) == 3
    assert all(line["mismatch"] < 1e-4 for line in found)
    assert all("ratio" not in line for line in found)  # one update: nothing to compare with
    place = world / "whole" / "rounds"
    for number in (1, 2):
        before = {entry.digest for entry in load_artifact(place / f"{number:05d}" / "rollout").manifest.inputs}
        after = {entry.digest for entry in load_artifact(place / f"{number:05d}" / "train").manifest.inputs}
        path = place / f"{number - 1:05d}" / "train"
        if path.is_dir():
            assert load_artifact(path).digest in before & after
    assert not (place / "00000" / "train").exists()  # the newest two are kept
    assert (place / "00000" / "rewards").exists() or (place / "00000" / "reward").exists()


def test_prompts_go_on_where_the_round_before_ended(world):
    import pyarrow as pa

    from postmill.io.rollouts import ROLLOUTS
    from postmill.io.schemas import ROLLOUTS_V1
    from postmill.io.table import TableReader

    asked = []
    for number in range(3):
        path = world / "whole" / "rounds" / f"{number:05d}" / "rollout" / ROLLOUTS
        asked += [r["line"] for r in pa.Table.from_batches(list(TableReader(path, ROLLOUTS_V1))).to_pylist()[::4]]
    assert asked == [1, 2, 3, 4, 5, 1, 2, 3, 4]


@pytest.mark.parametrize("kill_at", [2, 7])
def test_a_loop_that_was_killed_at_any_moment_ends_with_the_same_bytes(world, kill_at, monkeypatch):
    """Broken off before stage `kill_at`, and once more before the next: both go on."""
    real, calls = rounds.run_stage, []

    def fail(*args):
        calls.append(1)
        if len(calls) > kill_at:
            raise StageError("killed", 1)
        return real(*args)

    monkeypatch.setattr(rounds, "run_stage", fail)
    with pytest.raises(StageError, match="killed"):
        run(world, f"killed-{kill_at}")
    monkeypatch.setattr(rounds, "run_stage", real)
    run(world, f"killed-{kill_at}")
    assert digests(world / f"killed-{kill_at}") == digests(world / "whole")
    assert lines(world / f"killed-{kill_at}") == lines(world / "whole")


def test_a_process_that_dies_inside_a_stage_leaves_nothing_that_matters(world):
    """Real kills at random moments, of a child that was forked here."""
    for pause in (0.4, 1.1):
        pid = os.fork()
        if not pid:
            try:
                run(world, "dies")
            finally:
                os._exit(0)
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if (world / "dies" / "status.json").is_file() and lines_or_none(world / "dies") != lines(world / "whole"):
            assert status.run([str(world / "dies")]) == 1
    run(world, "dies")
    assert digests(world / "dies") == digests(world / "whole")
    assert status.run([str(world / "dies")]) == 0


def lines_or_none(folder):
    return lines(folder) if (folder / "metrics.jsonl").is_file() else None


def test_a_finished_loop_is_up_to_date_and_more_rounds_go_on_from_it(world, monkeypatch):
    run(world, "more", "--rounds", "2")
    run(world, "more")
    assert digests(world / "more") == digests(world / "whole")
    made = []
    real = rounds.run_stage
    monkeypatch.setattr(rounds, "run_stage", lambda *args: made.append(real(*args)) or made[-1])
    run(world, "more")
    assert {outcome.status for outcome in made} == {"up-to-date"}
    with pytest.raises(ArtifactError, match="exists, made") as caught:
        run(world, "more", "--set", "train.lr=0.01")
    assert caught.value.code == 73


def test_an_engine_that_keeps_the_old_weights_is_found(world, monkeypatch):
    real = LocalEngine.load
    monkeypatch.setattr(LocalEngine, "load", lambda self, folders: real(self, folders[:1]))
    with pytest.raises(StageError, match=r"the engine held the tensors .* of a round before") as caught:
        run(world, "lies")
    assert caught.value.code == 78


def test_an_engine_at_another_temperature_is_found(world, monkeypatch):
    from postmill.stages.shared.engine import local
    from postmill.stages.shared.engine.protocol import Sampling

    real = LocalEngine.answer

    def hotter(self, batch, sampling):
        import msgspec

        return real(self, batch, msgspec.structs.replace(sampling, temperature=2.0))

    assert local.LocalEngine is LocalEngine
    assert Sampling(max_new_tokens=1).temperature == 1.0
    monkeypatch.setattr(LocalEngine, "answer", hotter)
    with pytest.raises(ArtifactError, match="differ from this model's by") as caught:
        run(world, "hot")
    assert caught.value.code == 78


def test_it_learns_and_what_is_measured_is_in_the_record(world):
    more = """
measure = ["greedy", "greedy_reward"]
measure_every = 4
warmup = 2
cooldown = 2
updates = 2
[greedy]
stage = "rollout"
prompts = "prompts"
policy = "model"
samples = 1
temperature = 0
max_new_tokens = 3
[greedy_reward]
stage = "reward"
rollouts = "greedy"
functions = "{folder}/mine.py:letters"
"""
    text = RECIPE.format(folder=world, more=more.format(folder=world))
    text = text.replace("samples = 4", "samples = 16").replace("prompts = 3", "prompts = 5")
    (world / "learn.toml").write_text(text.replace("rank = 4", 'tuner = "full"'))
    run(world, "learn", "--rounds", "6", recipe="learn.toml")
    found = lines(world / "learn")
    assert found[-1]["reward"] > 2 * found[0]["reward"]
    assert [("greedy_reward" in line) for line in found] == [True, False, False, False, True, True]
    assert [line["lr"] / found[1]["lr"] for line in found] == [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]
    assert abs(found[3]["ratio"] - 1) > 1e-6  # the second update compares with the start of its round
    assert found[0]["pass_at_16"] >= found[0]["pass_at_1"] == pytest.approx(found[0]["reward"])


LOOPS = sorted(path.stem for path in RECIPES.glob("*.toml") if "[loop]" in path.read_text())


@pytest.mark.parametrize("name", LOOPS)
def test_a_recipe_that_comes_with_the_package_runs_to_its_merged_model(world, name, monkeypatch):
    monkeypatch.chdir(world)
    (world / "tools.py").write_text("def calc(x):\n    return x\n")
    small = {"rollout.samples": "4", "rollout.max_new_tokens": "3", "train.rank": "4", "merge.parity": "off"}
    if name != "on-policy-distillation":
        small["reward.functions"] = "mine.py:letters"
    words = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    made = run(world, name, "--rounds", "2", "--set", "loop.prompts=4", *words, recipe=name)
    assert load_artifact(made / "merge").manifest.kind == "model"
    assert len(lines(made)) == 2 and not any("skipped" in line for line in lines(made))


def test_a_teacher_in_the_round_is_asked_about_the_samples_of_the_round(world):
    text = RECIPE.format(folder=world, more="")
    judged = '[teacher]\nstage = "score"\n[reward]\nteacher = "teacher"\n'
    (world / "taught.toml").write_text(text.replace("[reward]\n", judged))
    made = run(world, "taught", "--rounds", "2", recipe="taught.toml")
    for number in ("00000", "00001"):
        place = made / "rounds" / number
        sampled = load_artifact(place / "rollout").digest
        teacher = load_artifact(place / "teacher")
        assert sampled in {entry.digest for entry in teacher.manifest.inputs}
        assert teacher.digest in {entry.digest for entry in load_artifact(place / "reward").manifest.inputs}
    assert digests(made) == digests(
        run(world, "taught-follow", "--rounds", "2", "--follow", "all", recipe="taught.toml")
    )


def test_rounds_without_an_advantage_change_nothing(world):
    (world / "same.py").write_text("def letters(row):\n    return 1.0\n")
    text = RECIPE.format(folder=world, more="").replace("mine.py", "same.py")
    (world / "same.toml").write_text(text.replace("[pack]", 'keep = "mixed"\n[pack]'))
    made = run(world, "same", recipe="same.toml")
    assert [line["skipped"] for line in lines(made)] == [True] * 3
    assert len({line["weights"][0] for line in lines(made)}) == 1


CRITIC = """
[critic]
stage = "train"
objective = "value"
tuner = "full"
rewards = "reward"
lr = 0.01

[loop]
"""


def test_a_critic_learns_beside_the_policy_and_judges_the_next_round(world, monkeypatch):
    """PPO: in the first round tokens are worth what was earned, from then on what the critic of the round before says;
    broken off between the two trainings, the loop goes on to the same bytes."""
    text = RECIPE.format(folder=world, more="").replace(
        "[reward]", '[values]\nstage = "score"\nrows = "rollout"\n[reward]'
    )
    text = text.replace("[pack]", 'advantage = "gae"\nvalues = "values"\n[pack]').replace("[loop]", CRITIC.strip())
    (world / "ppo.toml").write_text(text)
    place = run(world, "ppo", recipe="ppo.toml") / "rounds"
    found = lines(world / "ppo")
    assert all(line["critic.loss"] > 0 for line in found)
    assert not (place / "00000" / "values").exists()
    for number in (1, 2):
        here = place / f"{number:05d}"
        [asked] = [e for e in load_artifact(here / "values").manifest.inputs if e.port == "model"]
        used = {e.port: e.digest for e in load_artifact(here / "reward").manifest.inputs}
        assert used["values"] == load_artifact(here / "values").digest
        if (place / f"{number - 1:05d}" / "critic").is_dir():
            assert asked.digest == load_artifact(place / f"{number - 1:05d}" / "critic").digest
        learned = {e.port: e.digest for e in load_artifact(place / "00002" / "critic").manifest.inputs}
    assert learned["from"] == load_artifact(place / "00001" / "critic").digest
    assert not (place / "00000" / "critic").exists()  # the newest two are kept

    real = rounds.run_stage

    def fail(stage, config, inputs, output, options):
        if output == world / "ppo-killed" / "rounds" / "00001" / "critic":
            raise StageError("killed", 1)
        return real(stage, config, inputs, output, options)

    monkeypatch.setattr(rounds, "run_stage", fail)
    with pytest.raises(StageError, match="killed"):
        run(world, "ppo-killed", recipe="ppo.toml")
    monkeypatch.setattr(rounds, "run_stage", real)
    run(world, "ppo-killed", recipe="ppo.toml")
    assert digests(world / "ppo-killed") == digests(world / "ppo")
    with pytest.raises(ConfigError, match="a critic is trained in turn"):
        run(world, "ppo", "--follow", "all", recipe="ppo.toml")
    (world / "ppo.toml").write_text(text.replace('values = "values"', ""))
    with pytest.raises(ConfigError, match="does not use what the critic"):
        run(world, "no", recipe="ppo.toml")


def test_recipes_that_make_no_rounds_are_refused(world):
    def text(old, new):
        (world / "bad.toml").write_text(RECIPE.format(folder=world, more="").replace(old, new))

    for old, new, why in (
        ("[loop]", "[train.rl]", r"no section \[loop\]"),
        ("[rollout]", '[tokenize]\nfor = "prompt"\n[rollouts]', "no such stage"),
        (
            "[pack]",
            '[again]\nstage = "reward"\nfunctions = "number"\n[pack]',
            "between its ends stand rollout, reward, again",
        ),
        ("lr = 0.05", 'lr = 0.05\nschedule = "cosine"', "schedule: cannot be said in a loop"),
        ("rounds = 3", "round = 3", "round"),
        ("prompts = 3", "prompts = 9", "has 5 prompts, and one that is asked twice"),
        ("rounds = 3", 'measure = ["greedy"]', r"\[loop\] measure: greedy: no such section"),
    ):
        text(old, new)
        with pytest.raises(ConfigError, match=why):
            run(world, "no", recipe="bad.toml")
    assert not (world / "no" / "rounds" / "00000" / "rollout").exists()


def test_status_tells_a_halted_process(world):
    pid = os.fork()
    if not pid:
        try:
            run(world, "halted", "--rounds", "9")
        finally:
            os._exit(0)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (world / "halted" / "metrics.jsonl").is_file():
            time.sleep(0.02)
        assert status.look(world / "halted").state == "running"
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        found = status.look(world / "halted")
        assert found.state == "halted"
        assert found.stage in ("rollout", "reward", "pack", "train")
        assert "reward" in found.last
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert status.look(world / "halted").state == "died"
