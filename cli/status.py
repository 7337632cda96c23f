"""`postmill status FOLDER`: where a loop is, and whether it still runs."""

import platform
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.loop import PARTS
from postmill.cli.tool import need, parse
from postmill.io.errors import FAILED, NO_INPUT, ArtifactError
from postmill.io.json_file import load_json

USAGE = """
Say where a loop is: its round, the stage that runs and for how long, and the last rewards.

usage: postmill status FOLDER [--json]

The exit code is 1 if the loop's process is gone or halted before the loop was done.
"""


_WORST_FIRST = ("failed", "died", "halted", "stopped", "running", "waiting", "elsewhere", "done")


class Status(msgspec.Struct, omit_defaults=True):
    """A loop, looked at from outside."""

    state: str
    """running, waiting, done, stopped, failed, died (its process is gone), halted (by SIGSTOP or a debugger) or
    elsewhere."""
    round: int
    rounds: int
    stage: str
    seconds: float
    """How long it has been at that."""
    last: dict[str, float]
    """Numbers of the last round that is done."""
    waiting_for: str = ""
    """What it waits for, in the loop's folder."""
    parts: dict[str, "Status"] = {}
    """The processes of a loop that runs in several."""


def run(argv: list[str]) -> int:
    """Print one line, or an object."""
    args = parse(argv, USAGE, switches=("--json",))
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    status = look(Path(args.words[0]))
    if args.has("--json"):
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
    else:
        sys.stdout.write(_line(status) + "\n")
        sys.stdout.writelines(
            f"  {part} {_line(msgspec.structs.replace(one, last={}))}\n" for part, one in status.parts.items()
        )
    return FAILED if status.state in ("died", "halted", "failed") else 0


def look(folder: Path) -> Status:
    """The loop in `folder`. Raises ArtifactError (66) if there is none."""
    places = {part: folder / "status" / f"{part}.json" for part in PARTS}
    parts = {part: _look(folder, place) for part, place in places.items() if place.is_file()}
    path = folder / "status.json"
    if parts:
        states = [one.state for one in parts.values()]
        worst = next((state for state in _WORST_FIRST if state in states), states[0])
        first = parts.get("train", next(iter(parts.values())))
        return msgspec.structs.replace(first, state=worst, parts=parts)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file; give the -o of `postmill loop`", NO_INPUT)
    return _look(folder, path)


def state_of(said: dict[str, Any]) -> str:
    """What the process is at that wrote this: what it says, or what became of it since."""
    state = str(said["state"])
    if state not in ("running", "waiting"):
        return state
    found = _alive(int(said["pid"]), str(said["host"]), float(said["since"]))
    return state if found == "running" else found


def _look(folder: Path, path: Path) -> Status:
    said = load_json(path)
    state = state_of(said)
    record = folder / "metrics.jsonl"
    lines = record.read_bytes().splitlines() if record.is_file() else []
    last = msgspec.json.decode(lines[-1]) if lines else {}
    numbers = {name: value for name, value in last.items() if isinstance(value, float)}
    seconds = round(time.time() - float(said["since"]), 1)
    return Status(
        state=state,
        round=int(said["round"]),
        rounds=int(said["rounds"]),
        stage=str(said["stage"]),
        seconds=seconds,
        last=numbers,
        waiting_for=str(said.get("waiting_for", "")),
    )


def _alive(pid: int, host: str, since: float) -> str:
    """What a process that says it runs does. One that began after it said so is another with the same number."""
    if host != platform.node():
        return "elsewhere"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        booted = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return "died"
    import os

    began = time.time() - booted + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    if fields[0] in "ZX" or began > since + 1:
        return "died"
    return "halted" if fields[0] in "Tt" else "running"


def _line(status: Status) -> str:
    at = f"round {status.round + 1} of {status.rounds}"
    told = {
        "running": f"{at}, {status.stage} for {status.seconds:,.0f} s",
        "waiting": f"{at}, for {status.waiting_for}",
        "halted": f"{at}: its process was halted during {status.stage}; continue it with SIGCONT",
        "died": f"{at}: its process is gone, it was at {status.stage}; the same command goes on",
        "stopped": f"{at}; the same command goes on",
        "failed": f"{at}; see what it said",
        "elsewhere": f"{at}, {status.stage}: on another host, so nothing is known of its process",
        "done": f"{status.rounds} rounds",
    }[status.state]
    numbers = ", ".join(
        f"{name} {status.last[name]:.4g}" for name in ("reward", "mixed", "nats") if name in status.last
    )
    return f"{status.state}: {told}" + (f"; last: {numbers}" if numbers else "")
