"""The three processes of a loop, started and watched: one that is killed is started again, one that fails ends all.

They meet in the loop's folder alone: every unit of work is an artifact with a name of its own, whole or not there. So
it does not matter when which of them dies.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from postmill.cli.loop import PARTS
from postmill.io.errors import FAILED, STOPPED, StageError

PARENT = "POSTMILL_PARENT"
"""Process that a part of a loop ends with."""
_MOST_STARTS = 5
"""Starts of a part without a round done between them."""
_PAUSE_S = 0.1
_PATIENCE_S = 120.0


def follow_all(argv: list[str], folder: Path) -> int:
    """Run `postmill loop ARGV` as three processes. Returns their exit code; 75 after a signal to this one."""
    told: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        told.append(number)

    before: dict[int, Any] = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
    watch = _Watch(argv, folder)
    try:
        while not told:
            code = watch.look()
            if code is not None:
                return code
            time.sleep(_PAUSE_S)
        raise StageError(f"stopped by {signal.Signals(told[0]).name}; run the same command again to go on", STOPPED)
    finally:
        watch.end()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    def __init__(self, argv: list[str], folder: Path) -> None:
        at = argv.index("--follow") + 1
        self._argv, self._folder = [argv[:at], argv[at + 1 :]], folder
        self._children = {part: self._start(part) for part in PARTS}
        self._starts: dict[tuple[str, int], int] = {}

    def _start(self, part: str) -> "subprocess.Popen[bytes]":
        head, tail = self._argv
        program = [sys.executable, "-P", "-m", "postmill.cli.main", "loop", *head, part, *tail]
        # the last one prints the folder of the last weights; it may be killed after that and print it again
        stdout = subprocess.PIPE if part == "train" else subprocess.DEVNULL
        environment = os.environ | {PARENT: str(os.getpid())}
        return subprocess.Popen(program, stdout=stdout, env=environment, start_new_session=True)

    def look(self) -> int | None:
        """The exit code of the loop, once it is known. Parts that were killed are started again."""
        codes = {part: child.poll() for part, child in self._children.items()}
        for part, code in codes.items():
            if code is None or code == 0:
                continue
            if code > 0:
                return code
            done = sum(1 for _ in self._folder.glob("rounds/*/done"))
            self._starts[part, done] = self._starts.get((part, done), 0) + 1
            name = signal.Signals(-code).name
            if self._starts[part, done] >= _MOST_STARTS:
                sys.stderr.write(f"loop: {part} was ended by {name} {_MOST_STARTS} times in one round\n")
                return FAILED
            sys.stderr.write(f"loop: {part} was ended by {name}; it is started again\n")
            self._children[part] = self._start(part)
        if any(code != 0 for code in codes.values()):
            return None
        said, _ = self._children["train"].communicate()
        sys.stdout.write(os.fsdecode(said))
        return 0

    def end(self) -> None:
        """Ask all to stop, then make them."""
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
                child.send_signal(signal.SIGCONT)  # one that was halted hears nothing before
        deadline = time.monotonic() + _PATIENCE_S
        for child in self._children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
