"""Limits that a child process puts on itself before it runs code of other people."""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1
_MOST_FILE_BYTES = 64 << 20
_MOST_FILES = 256


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_self(memory_mb: int) -> None:
    """A session of its own, so that all it starts can be killed with it; it ends with its parent; limits on memory,
    size of files and open files; no core dumps."""
    if os.getpgrp() != os.getpid():
        os.setsid()
    end_with_parent()
    memory = memory_mb << 20
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, _MOST_FILE_BYTES),
        (resource.RLIMIT_NOFILE, _MOST_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))
