"""Progress on stderr: one moving line on a terminal, one plain line every half minute elsewhere, nothing when quiet."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

_TERMINAL_EVERY_S = 0.1
_PLAIN_EVERY_S = 30.0
_WINDOW_S = 30.0
"""A rate is that of the last half to one minute: a run's start says little of its end."""


class Progress:
    """`Progress.say("pack", "12,000 rows")` from anywhere in a stage; what is shown, and how often, is decided here."""

    _quiet = True
    _last = 0.0
    _open = False

    @classmethod
    @contextlib.contextmanager
    def install(cls, *, quiet: bool) -> Iterator[None]:
        """Show progress inside the block, unless `quiet`."""
        cls._quiet, cls._last = quiet, time.monotonic()
        try:
            yield
        finally:
            cls._quiet = True
            if cls._open:
                sys.stderr.write("\n")
                cls._open = False

    @classmethod
    def say(cls, stage: str, text: str, *, always: bool = False) -> None:
        """Show a state; skipped if the last one is too recent, unless `always`."""
        if cls._quiet:
            return
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if not always and now - cls._last < (_TERMINAL_EVERY_S if terminal else _PLAIN_EVERY_S):
            return
        cls._last = now
        if terminal:
            sys.stderr.write(f"\r\x1b[K{stage}: {text}")
            cls._open = True
            if always:
                sys.stderr.write("\n")
                cls._open = False
        else:
            sys.stderr.write(f"{stage}: {text}\n")
        sys.stderr.flush()

    @classmethod
    def beat(cls) -> None:
        """A sign of life for `postmill launch`, which ends a job when a rank gives none for long."""
        place = os.environ.get("POSTMILL_BEAT")
        if place:
            with contextlib.suppress(OSError), open(place, "w"):  # noqa: PTH123  # the fastest way to a new time
                pass

    @classmethod
    def show(cls, text: str) -> None:
        """Show a result for people to read, lines of text as they are, unless quiet."""
        if not cls._quiet:
            sys.stderr.write(f"\n{text}\n" if cls._open else f"{text}\n")
            cls._open = False

    @classmethod
    def warn(cls, stage: str, text: str) -> None:
        """Say something people should know, even when quiet."""
        sys.stderr.write(f"\n{stage}: warning: {text}\n" if cls._open else f"{stage}: warning: {text}\n")
        cls._open = False


class Meter:
    """How far work of a known size has come: its share, its rate and the time left, from how much of it is done."""

    def __init__(self, total: float, done: float = 0.0) -> None:
        """`done`: what was there before this run, and so counts for the share but not for the rate."""
        self.total = total
        now = time.monotonic()
        self._marks = [(now, done)]

    def rate(self, done: float) -> float:
        """Units a second lately; 0 while nothing can be said."""
        now = time.monotonic()
        if now - self._marks[-1][0] > _WINDOW_S:
            self._marks = [self._marks[-1], (now, done)]
        since, before = self._marks[0]
        return (done - before) / (now - since) if now > since and done > before else 0.0

    def share(self, done: float) -> str:
        """`34%`; never 100% before all is done."""
        if self.total <= 0 or done >= self.total:
            return "100%"
        return f"{min(99, int(100 * done / self.total))}%"

    def left(self, done: float) -> str:
        """`3 min left`, or nothing while the rate is not known."""
        rate = self.rate(done)
        return f"{duration((self.total - done) / rate)} left" if rate > 0 and done < self.total else ""

    def of(self, done: int, unit: str) -> str:
        """`34%, 412 of 1,210 rows, 52 rows/s, 15 s left`; `unit` in the plural."""
        rate = self.rate(done)
        speed = f"{rate:,.1f}" if rate < 10 else f"{rate:,.0f}"
        parts = [f"{self.share(done)}, {done:,} of {int(self.total):,} {unit}", f"{speed} {unit}/s" if rate else ""]
        return ", ".join(part for part in [*parts, self.left(done)] if part)

    def of_bytes(self, done: int) -> str:
        """`34%, 412 of 1,210 MB, 52.1 MB/s, 15 s left`."""
        unit, name = (1e9, "GB") if self.total >= 1e10 else (1e6, "MB")
        digits = 1 if self.total < 100 * unit else 0
        amount = f"{done / unit:,.{digits}f} of {self.total / unit:,.{digits}f} {name}"
        rate = self.rate(done)
        parts = [self.share(done), amount, f"{rate / 1e6:,.1f} MB/s" if rate else "", self.left(done)]
        return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """`0.4 s`, `15 s`, `3 min`, `2 h 5 min`, `4 days 3 h`."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} days {hours % 24} h"


def fetch_progress(what: str) -> Callable[[int, int], None]:
    """A function to call with bytes fetched and bytes to fetch, which may grow; it shows them."""
    meter = Meter(0)

    def report(done: int, total: int) -> None:
        meter.total = total
        Progress.say("fetch", f"{what}: {meter.of_bytes(done)}")

    return report
