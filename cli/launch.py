"""`postmill launch --ranks N STAGE ...`: several processes of a stage on this machine, as one command.

Like torchrun, with the stage's own exit code: 75 still means "run me again". A signal is passed on to every rank. When
a rank ends badly the others get a moment to say the same, then are ended. Several machines are torchrun's work.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import IO, Any

from postmill.io.errors import FAILED, STOPPED, ConfigError, StageError

USAGE = """Run a stage in several processes on this machine, and leave with its exit code.

usage: postmill launch --ranks N STAGE ...

example:
  postmill launch --ranks 2 train packed/ -m base/ -o run/ --bins-per-step 16

options:
  --ranks n       Processes to start: one for each GPU.
"""
_POLL_S = 0.05
_GRACE_S = {STOPPED: 600.0}
"""How long the others may go on after the first rank left with a code; a checkpoint may take a while."""
_GRACE_OTHERWISE_S = 5.0


def run(argv: list[str]) -> int:
    """Returns the exit code of the first rank that failed, 0 if none did. Raises ConfigError (2), StageError (1)."""
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    ranks, command = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="postmill-launch-") as folder:
        errors: list[IO[Any] | None] = [None, *(open(f"{folder}/{rank}", "w+") for rank in range(1, ranks))]  # noqa: PTH123, SIM115
        children = _start(command, ranks, errors)
        before = {number: signal.signal(number, _pass_on(children)) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            first = _wait(children)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for child in children:
                if child.poll() is None:
                    child.kill()
        if first is None:
            return 0
        said = errors[first]
        # rank 0 speaks for itself, and for all who leave as it does
        if said is not None and children[first].returncode != children[0].returncode:
            said.seek(0)
            sys.stderr.write(said.read())
        code = children[first].returncode
        if code < 0:
            raise StageError(
                f"rank {first} was ended by {signal.Signals(-code).name}; run the same command again to go on", FAILED
            )
        return int(code)


def _parse(argv: list[str]) -> tuple[int, list[str]]:
    name, _, value = argv[0].partition("=")
    rest = argv[1:]
    if name not in ("--ranks", "-n"):
        raise ConfigError(f"launch: {argv[0]}: expected --ranks N before the stage")
    value = value or (rest.pop(0) if rest else "")
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"launch: --ranks {value!r}: expected a number from 1 up")
    if not rest:
        raise ConfigError("launch: no stage to run; see postmill launch --help")
    from postmill.stages.table import STAGES

    if rest[0] not in STAGES:
        raise ConfigError(f"launch: {rest[0]}: no such stage; one of {', '.join(STAGES)}")
    import importlib

    if not importlib.import_module(f"postmill.stages.{rest[0]}.config").STAGE.ranks:
        raise ConfigError(f"launch: {rest[0]} runs in one process; run postmill {rest[0]}")
    return int(value), rest


def free_port() -> int:
    """A port of this machine that nobody has, for rank 0 to listen at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _start(command: list[str], ranks: int, errors: list[IO[Any] | None]) -> list[subprocess.Popen[Any]]:
    port = free_port()
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    argv = [sys.executable, "-m", "postmill.cli.main", *command]
    return [
        subprocess.Popen(
            argv,
            env=os.environ | {k: str(v) for k, v in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()},
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=errors[rank],
            # so that Ctrl-C reaches a rank once, through us
            start_new_session=True,
        )
        for rank in range(ranks)
    ]


def _pass_on(children: list[subprocess.Popen[Any]]) -> Any:
    def handle(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    return handle


def _wait(children: list[subprocess.Popen[Any]]) -> int | None:
    """Wait for all. Returns the first rank that failed, the lowest of those seen together; ends the others then."""
    first, deadline = None, float("inf")
    while any(child.poll() is None for child in children):
        failed = next((rank for rank, child in enumerate(children) if child.poll()), None)
        if first is None and failed is not None:
            first = failed
            deadline = time.monotonic() + _GRACE_S.get(children[first].returncode, _GRACE_OTHERWISE_S)
        if time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    child.kill()
        time.sleep(_POLL_S)
    if first is None:
        first = next((rank for rank, child in enumerate(children) if child.poll()), None)
    return first
