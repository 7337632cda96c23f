"""Runs stages in forked children with the k-th file operation made to fail. Started by lab.py with inject.so preloaded.

Reads one JSON object a line: {"argv", "under", "mode", "k", "errno"}; answers {"code", "count", "stderr"}. Forking from a
process that has loaded everything already makes a run cost milliseconds instead of seconds.
"""

import ctypes
import importlib
import json
import os
import sys
import tempfile


def child(request: dict, errors: str, counted: str) -> None:
    """Run the command in this forked process and leave."""
    inject = ctypes.CDLL(None)
    null = os.open(os.devnull, os.O_RDWR)
    sink = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for fd, source in ((0, null), (1, null), (2, sink)):
        os.dup2(source, fd)
    from postmill.cli.main import _guarded

    inject.fault_arm(
        request["under"].encode(), ctypes.c_char(request["mode"].encode()), ctypes.c_long(request["k"]), request["errno"]
    )
    code = _guarded(request["argv"][0], request["argv"][1:])
    inject.fault_count.restype = ctypes.c_long
    count = inject.fault_count()
    inject.fault_arm(b"", ctypes.c_char(b"n"), ctypes.c_long(0), 0)
    with open(counted, "w") as file:
        file.write(str(count))
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Load the modules named on the command line, then serve."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as scratch:
        errors, counted = f"{scratch}/stderr", f"{scratch}/count"
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for line in sys.stdin:
            if os.path.exists(counted):
                os.unlink(counted)
            pid = os.fork()
            if pid == 0:
                child(json.loads(line), errors, counted)
            _, status = os.waitpid(pid, 0)
            answer = {
                "code": os.waitstatus_to_exitcode(status),
                "count": int(open(counted).read()) if os.path.exists(counted) else -1,
                "stderr": open(errors).read(),
            }
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
