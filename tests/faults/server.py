"""Runs stages in forked children with the k-th file operation made to fail. lab.py starts it with inject.so preloaded.

Reads one JSON object a line: {"argv", "under", "mode", "k", "errno"}; answers {"code", "count", "stderr"}. Forking from
a process that has loaded everything already makes a run cost milliseconds instead of seconds.
"""

import ctypes
import gc
import importlib
import json
import os
import sys
import tempfile
from pathlib import Path


def child(request: dict, errors: Path, counted: Path) -> None:
    """Run the command in this forked process and leave."""
    inject = ctypes.CDLL(None)
    null = os.open(os.devnull, os.O_RDWR)
    sink = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd, source in ((0, null), (1, null), (2, sink)):
        os.dup2(source, fd)
    from postmill.cli.main import _guarded

    under, mode, k = request["under"].encode(), request["mode"].encode(), request["k"]
    inject.fault_arm(under, ctypes.c_char(mode), ctypes.c_long(k), request["errno"])
    code = _guarded(request["argv"][0], request["argv"][1:])
    inject.fault_count.restype = ctypes.c_long
    count = inject.fault_count()
    inject.fault_arm(b"", ctypes.c_char(b"n"), ctypes.c_long(0), 0)
    counted.write_text(str(count))
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Load the modules named on the command line, then serve."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as scratch:
        errors, counted = Path(scratch, "stderr"), Path(scratch, "count")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for line in sys.stdin:
            counted.unlink(missing_ok=True)
            pid = os.fork()
            if pid == 0:
                child(json.loads(line), errors, counted)
            _, status = os.waitpid(pid, 0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "count": int(counted.read_text()) if counted.exists() else -1,
                "stderr": errors.read_text(),
            }
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
