"""What a child process that runs code of other people is given to see, and the limits that it puts on itself."""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1
_MOST_FILE_BYTES = 64 << 20
_MOST_FILES = 256
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")


def bare_environment() -> dict[str, str]:
    """What of our environment it sees: no keys and tokens of other services. One thread, and hashes that repeat."""
    seen = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return seen | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the one that started it is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


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
