"""The ranks of one job on this machine: watched until all are done, ended when one dies, stops or hangs."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import msgspec

from postmill.io.errors import FAILED, INTERNAL, STOPPED, StageError

_POLL_S = 0.05
_GRACE_S = {STOPPED: 600.0}
"""How long the others may go on after the first rank left with a code; a checkpoint may take a while."""
_GRACE_OTHERWISE_S = 5.0
_PAUSE_S = 5.0
"""How long a rank may be stopped while others run. One that sleeps holds up all of them."""
_LOOK_S = 0.5
"""How often stopped and hanging ranks are looked for."""
_DUMP_S = (0.5, 3.0)
"""How long ranks get to say where they are, at least and at most."""


class Rank(msgspec.Struct):
    """One process. `number` counts over all machines."""

    number: int
    child: Any
    said: IO[Any] | None
    """What it wrote to stderr; None where that is our own."""
    beat: Path
    """A file whose time of change is that of the rank's last sign of life."""
    ended_by_us: bool = False

    @property
    def code(self) -> int | None:
        found: int | None = self.child.poll()
        return found


class Watch:
    """Waits for `ranks`. `hang_s`: end the job when one gave no sign of life for so long; 0 never does."""

    def __init__(self, ranks: list[Rank], hang_s: float) -> None:
        self._ranks, self._hang_s = ranks, hang_s
        self._stopped_at: dict[int, float] = {}

    def pass_on(self, number: int, frame: Any) -> None:
        """A signal to us goes to every rank."""
        for rank in self._running():
            rank.child.send_signal(number)

    def wait(self) -> int:
        """0, or the exit code of the rank whose failure was the first cause. Raises StageError (1) for one that a
        signal ended, that was stopped, or that hangs; the others are ended then."""
        deadline, looked = float("inf"), 0.0
        while self._running():
            failed = [rank.code for rank in self._ranks if rank.code]
            if failed and deadline == float("inf"):
                deadline = time.monotonic() + max(_GRACE_S.get(code, _GRACE_OTHERWISE_S) for code in failed if code)
            if time.monotonic() > deadline:
                self.end()
            if not failed and time.monotonic() - looked > _LOOK_S:
                looked = time.monotonic()
                self._look()
            time.sleep(_POLL_S)
        return self._verdict()

    def end(self) -> None:
        """Kill what still runs."""
        for rank in self._running():
            rank.ended_by_us = True
            rank.child.kill()
            rank.child.wait()

    def _running(self) -> list[Rank]:
        return [rank for rank in self._ranks if rank.code is None]

    def _look(self) -> None:
        """Raises StageError (1), with the job ended, if a rank is stopped or hangs."""
        running = self._running()
        stopped = [rank for rank in running if _is_stopped(rank.child.pid)]
        for rank in running:
            if rank not in stopped:
                self._stopped_at.pop(rank.number, None)
        if stopped and len(stopped) < len(running):  # all of them: somebody paused the job
            since = min(self._stopped_at.setdefault(rank.number, time.monotonic()) for rank in stopped)
            if time.monotonic() - since > _PAUSE_S:
                self._end_with(f"rank {stopped[0].number} is stopped (SIGSTOP) and holds up the others")
        beats = {rank.number: rank.beat.stat().st_mtime for rank in running if rank.beat.exists()}
        if self._hang_s and beats and len(beats) == len(running) and not stopped:
            oldest = min(beats, key=lambda number: beats[number])
            silent = time.time() - beats[oldest]
            if silent > self._hang_s:
                self._end_with(f"rank {oldest} gave no sign of life for {silent:.0f} s (--hang-s)")

    def _end_with(self, what: str) -> None:
        asked = {rank.number: _size(rank.said) for rank in self._running() if not _is_stopped(rank.child.pid)}
        for rank in self._running():
            rank.child.send_signal(signal.SIGUSR1)  # says where it is
        started = time.monotonic()
        least, most = _DUMP_S
        while (passed := time.monotonic() - started) < most:
            silent = [r for r in self._running() if r.number in asked and r.said and _size(r.said) == asked[r.number]]
            if not silent and passed > least:
                break
            time.sleep(_POLL_S)
        self.end()
        for rank in self._ranks:
            text = _tail(rank.said)
            if text:
                sys.stderr.write(f"--- rank {rank.number} said last:\n{text}")
        raise StageError(f"{what}; the job was ended, run the same command again to go on", FAILED)

    def _verdict(self) -> int:
        own = [rank for rank in self._ranks if rank.code and not rank.ended_by_us]
        if not own:
            return 0
        # a rank whose peer is gone fails of that; the peer's own end says more
        killed = next((rank for rank in own if rank.child.returncode < 0), None)
        if killed is not None:
            name = signal.Signals(-killed.child.returncode).name
            raise StageError(f"rank {killed.number} was ended by {name}; run the same command again to go on", FAILED)
        first = next((rank for rank in own if rank.code != INTERNAL), own[0])
        # rank 0 speaks for itself, and for all who leave as it does
        if first.said is not None and first.code != self._ranks[0].code:
            first.said.seek(0)
            sys.stderr.write(first.said.read())
        return int(first.child.returncode)


def _is_stopped(pid: int) -> bool:
    """Whether a child of ours was stopped by a signal. Where the system does not tell, no."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def _tail(said: IO[Any] | None, num_bytes: int = 4000) -> str:
    if said is None:
        return ""
    said.seek(max(0, _size(said) - num_bytes))
    return str(said.read())


def _size(said: IO[Any] | None) -> int:
    return 0 if said is None else os.fstat(said.fileno()).st_size


def start(argv: list[str], environments: list[dict[str, str]], folder: Path, *, has_stdin: bool = True) -> list[Rank]:
    """Start a process for each environment, which has its RANK. Rank 0 has our stdout and stderr."""
    ranks = []
    for environment in environments:
        number = int(environment["RANK"])
        said = open(folder / f"{number}.txt", "w+") if number else None  # noqa: PTH123, SIM115
        beat = folder / f"{number}.beat"
        child = subprocess.Popen(
            argv,
            env=os.environ | environment | {"POSTMILL_BEAT": str(beat)},
            stdin=None if has_stdin else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if number else None,
            stderr=said,
            # so that Ctrl-C reaches a rank once, through us
            start_new_session=True,
        )
        ranks.append(Rank(number, child, said, beat))
    return ranks
