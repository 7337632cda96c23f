"""Loops whose processes are killed at random moments, and what must hold of everything that they leave behind."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa

from postmill.cli.loop import PARTS
from postmill.io.manifest import load_artifact
from postmill.io.packed import PackedReader
from postmill.io.rollouts import REWARDS, ROLLOUTS
from postmill.io.schemas import REWARDS_V1, ROLLOUTS_V1
from postmill.io.table import TableReader

LOOP = "loop"
"""The process that starts the three of `PARTS` and watches them."""
PATIENCE_S = 600
_MOST_IN_A_ROUND = 3
"""Kills of a part in one round; its fifth end in a round would end the loop."""


class Killed:
    """A loop in three processes, `victim` of which is killed again and again."""

    def __init__(self, command: list[str], folder: Path, victims: list[str], draw: random.Random) -> None:
        """command: of `postmill loop`; victims: who is killed, in this order."""
        self._command, self._folder, self._draw = command, folder, draw
        self._victims = victims
        self._in_round: Counter[tuple[str, int]] = Counter()
        self.kills: Counter[str] = Counter()

    def run(self) -> str:
        """To the loop's end. Returns what the last start of it printed. Raises AssertionError if it fails or hangs."""
        started = time.monotonic()
        while True:
            with subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                while self._victims and process.poll() is None:
                    assert time.monotonic() - started < PATIENCE_S * (1 + len(self._victims)), "the loop hangs"
                    if self._kill_one(process):
                        break
                said, errors = process.communicate(timeout=PATIENCE_S)
            if process.returncode == 0:
                return said.strip()
            assert process.returncode == -signal.SIGKILL, errors

    def _kill_one(self, process: "subprocess.Popen[str]") -> bool:
        """Kill the next victim at a moment of its own. Whether it was the loop, which has to be started again."""
        victim = self._victims[0]
        self._pause(victim, process)
        number = len(list(self._folder.glob("rounds/*/done")))
        if victim != LOOP and self._in_round[victim, number] >= _MOST_IN_A_ROUND:
            return False
        children = children_of(process.pid)
        pid = process.pid if victim == LOOP else children.get(victim)
        if pid is None or process.poll() is not None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self._in_round[victim, number] += 1
            self.kills[victim] += 1
            self._victims.pop(0)
        if victim != LOOP:
            return False
        process.wait(PATIENCE_S)
        deadline = time.monotonic() + 10
        while any(is_alive(child) for child in children.values()):
            assert time.monotonic() < deadline, "parts outlive the loop that started them"
            time.sleep(0.01)
        return True

    def _pause(self, victim: str, process: "subprocess.Popen[str]") -> None:
        """Some part of a second; two times of three counted from when the victim works on something."""
        part = self._draw.choice(PARTS) if victim == LOOP else victim
        if self._draw.random() < 2 / 3:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and process.poll() is None and not self._works(part, process.pid):
                time.sleep(0.005)
            time.sleep(self._draw.uniform(0, 0.6))
        else:
            time.sleep(self._draw.uniform(0, 4))

    def _works(self, part: str, pid: int) -> bool:
        place = self._folder / "status" / f"{part}.json"
        with contextlib.suppress(OSError, ValueError):
            said = json.loads(place.read_text())
            return said["state"] == "running" and said["pid"] == children_of(pid).get(part)
        return False


def children_of(pid: int) -> dict[str, int]:
    """The process of each part that the loop `pid` has started."""
    found = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            if "--follow" in words:
                found[words[words.index("--follow") + 1]] = int(child)
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def digests(folder: Path) -> dict[str, str]:
    """Of every artifact in `folder`."""
    made = [path.parent for path in sorted(folder.rglob("manifest.json")) if ".checkpoints" not in str(path)]
    return {str(path.relative_to(folder)): load_artifact(path).digest for path in made}


def check_rows(folder: Path, rounds: int, prompts: int, samples: int, num_asks: int) -> int:
    """Every sample of the plan was made, rewarded, and packed if it has an advantage, once. Returns how many."""
    for number in range(rounds):
        place = folder / "rounds" / f"{number:05d}"
        rows = _table(place / "rollout" / ROLLOUTS, ROLLOUTS_V1)
        asked = [(number * prompts + n) % num_asks + 1 for n in range(prompts)]
        assert [(row["line"], row["sample"]) for row in rows] == [(n, s) for n in asked for s in range(samples)]
        assert len({row["row_id"] for row in rows}) == len(rows)
        rewards = _table(place / "reward" / REWARDS, REWARDS_V1)
        assert [row["row_id"] for row in rewards] == [row["row_id"] for row in rows]
        kept = [row["row_id"] for row in rewards if row["advantage"] is not None and row["kept"]]
        reader = PackedReader(place / "pack")
        packed = [rows[ordinal]["row_id"] for n in range(len(reader)) for ordinal in reader.rows(n).tolist()]
        assert sorted(packed) == sorted(kept)
    return rounds * prompts * samples


def _table(path: Path, schema: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.Table.from_batches(list(TableReader(path, schema))).to_pylist()
    return found


def words_of(world: Path, name: str) -> list[str]:
    """The words of `postmill loop` for a world of `tiny_loop`, in one process."""
    words = [world / "loop.toml", world / "asks.jsonl", "-m", world / "base", "-o", world / name, "--threads", "1"]
    return [*map(str, words), "-q"]


def command_of(world: Path, name: str, *more: str) -> list[str]:
    """The same as a command, in three processes."""
    program = [sys.executable, "-P", "-m", "postmill.cli.main", "loop"]
    return [*program, *words_of(world, name), "--follow", "all", *more]
