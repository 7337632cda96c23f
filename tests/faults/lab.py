"""A fault laboratory: any command, with any one of its file operations killed, halved or refused."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass
class Run:
    """How a command ended: exit code (negative: signal), counted file operations, what it said."""

    code: int
    count: int
    stderr: str


class Lab:
    """Talks to the forking server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, argv: list[str], under: Path, *, mode: str = "n", k: int = 0, error: int = errno.ENOSPC) -> Run:
        """Run `postmill ARGV`, with operation `k` under the folder `under` failing by `mode` (`n`: none does)."""
        request = {"argv": argv, "under": str(under), "mode": mode, "k": k, "errno": error}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Run(**json.loads(self._process.stdout.readline()))


@contextmanager
def open_lab(build: Path, *modules: str) -> Iterator[Lab]:
    """Compile the injector into `build`, start a server that has loaded `modules`."""
    library = build / "inject.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "inject.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-P", str(HERE / "server.py"), *modules]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Lab(process)
        process.stdin.close()
