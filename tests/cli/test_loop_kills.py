"""Loops in three processes, killed two hundred times at each lag: every artifact has the bytes of a loop that nobody
killed, and no sample is lost or used twice. And loops of which a process is halted: the others say so, and leave."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers")
pytest.importorskip("postmill._native", reason="native module not built")

from loop_kills import LOOP, Killed, check_rows, children_of, command_of, digests, words_of  # noqa: E402
from tiny_loop import RECIPE, write_world  # noqa: E402

from postmill.cli import loop  # noqa: E402
from postmill.cli.loop import PARTS  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(6 * 3600)]
KILLS = 50
"""Of each process, at each lag."""
ROUNDS, PROMPTS, SAMPLES, ASKS = 4, 3, 4, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    recipe = RECIPE.replace("rounds = 3", f"rounds = {ROUNDS}")
    return write_world(tmp_path_factory.mktemp("kills"), recipe, num_asks=ASKS)


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_kills_at_random_moments_change_no_byte_and_lose_no_sample(world, lag):
    whole, options = world / f"whole-{lag}", ["--set", f"loop.lag={lag}"]
    assert loop.run([*words_of(world, whole.name), *options]) == 0
    expected, record = digests(whole), (whole / "metrics.jsonl").read_bytes()
    draw = random.Random(lag)
    victims = [victim for victim in (*PARTS, LOOP) for _ in range(KILLS)]
    draw.shuffle(victims)
    number = 0
    while victims:
        folder = world / f"killed-{lag}-{number}"
        said = Killed(command_of(world, folder.name, *options), folder, victims, draw).run()
        assert said == str(folder / "rounds" / f"{ROUNDS - 1:05d}" / "train")
        assert digests(folder) == expected
        assert (folder / "metrics.jsonl").read_bytes() == record
        assert check_rows(folder, ROUNDS, PROMPTS, SAMPLES, ASKS) == ROUNDS * PROMPTS * SAMPLES
        shutil.rmtree(folder)
        number += 1


@pytest.mark.parametrize("part", PARTS)
def test_a_loop_with_a_halted_process_leaves_with_69_and_names_it(world, part):
    folder = world / f"halted-{part}"
    with subprocess.Popen(command_of(world, folder.name), stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (folder / "status" / f"{part}.json").is_file():
            time.sleep(0.01)
        children = children_of(process.pid)
        os.kill(children[part], signal.SIGSTOP)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 69, errors
    assert f"{part} has been halted for" in errors
    for pid in children.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 0)
            raise AssertionError(f"{pid} is left")
