"""A command of ours as a process of its own: signals reach it through us, its exit code is what counts."""

import signal
import subprocess
import sys
from types import FrameType
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    """Its exit code; below 0, the signal that ended it."""
    report: bytes
    """What it wrote to stdout, if that was asked for."""
    told: bool
    """Whether we were told to stop while it ran, and passed that on."""


def run_child(argv: list[str], *, capture: bool = False) -> Ended:
    """Run `postmill ARGV` to its end. SIGTERM and SIGINT are passed on, so that Ctrl-C reaches it once."""
    told: list[int] = []
    program = [sys.executable, "-P", "-m", "postmill.cli.main", *argv]
    with subprocess.Popen(program, stdout=subprocess.PIPE if capture else None, start_new_session=True) as child:

        def pass_on(number: int, frame: FrameType | None) -> None:
            told.append(number)
            if child.poll() is None:
                child.send_signal(number)

        before: dict[int, Any] = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            report, _ = child.communicate()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return Ended(child.returncode, report or b"", bool(told))
