"""Progress on stderr: one moving line on a terminal, one plain line every half minute elsewhere, nothing when quiet."""

import contextlib
import sys
import time
from collections.abc import Iterator

_TERMINAL_EVERY_S = 0.1
_PLAIN_EVERY_S = 30.0


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
