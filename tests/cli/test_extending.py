"""Things added by a package of somebody else's, through entry points: found, offered, checked, run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = '''
"""A stage, a kind, a schedule and an optimizer that Postmill does not have."""

from typing import Annotated

import msgspec
import pyarrow as pa
from msgspec import Meta

from postmill.io.kinds import Kind
from postmill.stages.spec import SAME_BYTES, Port, Stage

MEAL_V1 = pa.schema([pa.field("grain", pa.utf8(), nullable=False)])
MEAL = Kind(tables={"meal.arrow": MEAL_V1}, stream=MEAL_V1)


class Steps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="halves"):
    """Halves the rate."""

    every: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the steps after which the rate is halved."""

    def share(self, done: float, rest: int, num_steps: int) -> float:
        return 0.5 ** int(done / self.every)


class Grind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Grind words."""

    loud: bool = False
    """Write in capitals."""
    threads_hint: Annotated[int, SAME_BYTES] = 1
    """Changes nothing."""


STAGE = Stage(
    name="grind",
    version=1,
    config=Grind,
    inputs={"words": Port(kinds=("file",), help="words, one a line")},
    output="meal",
    package="mill_extras.grind",
    example="postmill grind words.txt -o meal/",
)
'''
RUN = """
import pyarrow as pa
from mill_extras.grind.config import MEAL_V1

from postmill.stages.protocol import Result


def run(cfg, inputs, out):
    words = inputs["words"][0].path.read_text().split()
    writer = out.table("meal.arrow", MEAL_V1)
    writer.write(pa.RecordBatch.from_pylist([{"grain": w.upper() if cfg.loud else w} for w in words], schema=MEAL_V1))
    writer.close()
    out.ledger.keep(len(words))
    return Result()
"""
ENTRIES = """
[postmill.stages]
grind = mill_extras.grind.config:STAGE

[postmill.kinds]
meal = mill_extras.grind.config:MEAL

[postmill.schedules]
halves = mill_extras.grind.config:Steps
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed package."""
    site = tmp_path_factory.mktemp("site")
    (site / "mill_extras" / "grind").mkdir(parents=True)
    (site / "mill_extras" / "grind" / "config.py").write_text(PACKAGE)
    (site / "mill_extras" / "grind" / "run.py").write_text(RUN)
    about = site / "mill_extras-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mill-extras\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRIES)
    return site


def postmill(site: Path, *argv: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "postmill.cli.main", *map(str, argv)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)


def test_a_stage_and_a_kind(site: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("rye\noat\n")
    done = postmill(site, "grind", tmp_path / "words.txt", "-o", tmp_path / "meal", "--loud")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/meal\n"), done.stderr
    manifest = json.loads((tmp_path / "meal" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["stage"], manifest["counts"]["kept"]) == ("meal", "grind", 2)
    again = postmill(site, "grind", tmp_path / "words.txt", "-o", tmp_path / "meal", "--loud", "--threads-hint", "7")
    assert "up to date" in again.stderr
    other = postmill(site, "grind", tmp_path / "words.txt", "-o", tmp_path / "meal")
    assert other.returncode == 73
    assert "--loud" in postmill(site, "grind", "--help").stdout
    kind = "from postmill.io.kinds import find_kind; print(find_kind('meal').stream.names)"
    path = {"PYTHONPATH": str(site)}
    told = subprocess.run(
        [sys.executable, "-c", kind], env=os.environ | path, capture_output=True, text=True, check=True
    )
    assert told.stdout == "['grain']\n"


def test_a_schedule(site: Path, tmp_path: Path) -> None:
    told = postmill(site, "train", "--schedule", "halves", "--help", "all").stdout
    assert "--every x" in told
    rate = (
        "from postmill.stages.options import make, to_plain, from_plain\n"
        "from postmill.stages.train.config import Train\n"
        "cfg = make(Train, schedule='halves', every=0.25, lr=1.0, warmup=0)\n"
        "assert from_plain(Train, to_plain(cfg)) == cfg\n"
        "print([cfg.lr_at(n, 8) for n in range(8)])"
    )
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", rate], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    wrong = postmill(site, "train", "x", "-m", "y", "-o", "z", "--schedule", "halve")
    assert wrong.returncode == 2
    assert "did you mean halves?" in wrong.stderr


def test_a_name_that_nobody_has(tmp_path: Path, site: Path) -> None:
    done = postmill(site, "grindd", "--help")
    assert done.returncode == 2
    assert "no such command" in done.stderr
