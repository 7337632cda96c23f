"""What a process that runs stages again and again holds between their runs: models that are loaded, above all.

A stage takes what it kept the last time, if that was made from the same things. No byte of a result depends on it.
"""

from typing import Any


class Kept:
    """Values by name, each with what it was made from."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[object, Any]] = {}

    def take(self, name: str, made_from: object) -> Any:
        """What was kept as `name` if it was made from the same, otherwise None. It is given up until it is kept again,
        so that what a failed run left is never used."""
        before, value = self._held.pop(name, (None, None))
        if before == made_from:
            return value
        _close(value)
        return None

    def keep(self, name: str, made_from: object, value: Any) -> None:
        """For the next run."""
        self._held[name] = made_from, value

    def close(self) -> None:
        """Give up everything."""
        for _, value in self._held.values():
            _close(value)
        self._held.clear()


def _close(value: Any) -> None:
    """End what does not end by being forgotten: a server."""
    close = getattr(value, "close", None)
    if close is not None:
        close()
