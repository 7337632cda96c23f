"""The other processes of a loop, as one that waits for them sees them: whether what it waits for can still come."""

import time
from pathlib import Path

from postmill.cli.loop import PARTS
from postmill.cli.status import state_of
from postmill.io.errors import UNAVAILABLE, StageError
from postmill.io.json_file import load_json

STATUSES = "status"
"""Folder of a loop in which each process says what it is at."""
PATIENCE_S = {"halted": 20.0, "died": 60.0}
"""How long another process may be so. One that was killed is started again by its loop, which takes seconds."""
_REMEDY = {
    "failed": "see what it said",
    "halted": "continue it with SIGCONT, and run the same command again",
    "died": "run the same command again",
}


class Others:
    """The processes besides `part` of the loop in `folder`."""

    def __init__(self, folder: Path, part: str) -> None:
        self._places = {other: folder / STATUSES / f"{other}.json" for other in PARTS if other != part}
        self._began, self._met = time.time(), set[str]()
        self._lost: dict[str, tuple[str, float]] = {}
        """What a process was found to be, and when (monotonic)."""

    def check(self, path: Path) -> None:
        """Raise StageError (69) if a process failed, or has been gone or halted for too long. path: what is waited for.

        One that was gone before this process began is taken as one that has yet to be started.
        """
        for other, place in self._places.items():
            if not place.is_file():
                continue
            said = load_json(place)
            state = state_of(said)
            if state in ("running", "waiting", "halted") or said["since"] > self._began:
                self._met.add(other)
            if state not in _REMEDY or other not in self._met:
                self._lost.pop(other, None)
                continue
            now = time.monotonic()
            before, found = self._lost.get(other, (state, now))
            self._lost[other] = (state, found if before == state else now)
            waited = now - self._lost[other][1]
            if waited >= PATIENCE_S.get(state, 0.0):
                how = {"failed": "failed", "halted": f"has been halted for {waited:.0f} s", "died": "is gone"}[state]
                raise StageError(f"{path}: does not come: {other} {how}; {_REMEDY[state]}", UNAVAILABLE)
