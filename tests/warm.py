"""Commands of ours in forks of a process that has imported torch and transformers.

Each is a real process with its own folder, streams, signals and exit code; it only does not wait for seconds of
imports. `commands.postmill` starts an interpreter, as people do: each stage is started so somewhere in the tests.
What libraries read from the environment while they are imported is that of the tests: hubs are asked by real starts.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

IMPORTS = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "pandas",  # which pyarrow imports when it is given a list
    "peft",
    "postmill.cli.stage_command",
    "postmill.stages.eval.run",
    "postmill.stages.merge.run",
    "postmill.stages.pack.run",
    "postmill.stages.rollout.run",
    "postmill.stages.shared.engine.local",
    "postmill.stages.tokenize.run",
    "postmill.stages.train.finish",
    "postmill.stages.train.loop",
    "transformers.models.llama.modeling_llama",
)
POLL_S = 0.01


class Command:
    """A command that was started; `pid` may be sent signals."""

    def __init__(self, argv: tuple[object, ...], cwd: Path | None, env: Mapping[str, str]) -> None:
        self.args = ["postmill", *map(str, argv)]
        self._streams = [tempfile.NamedTemporaryFile("w+", prefix="postmill-") for _ in range(2)]  # noqa: SIM115
        request = {"argv": self.args, "cwd": str(cwd or Path.cwd()), "env": {**os.environ, **env}}
        self.pid: int = _ask(request | {"streams": [stream.name for stream in self._streams]})
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, -signal if it was killed; None while it runs."""
        if self.returncode is None:
            self.returncode = _ask({"ended": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end. Its exit code and what it printed."""
        while self.poll() is None:
            time.sleep(POLL_S)
        assert self.returncode is not None
        stdout, stderr = (Path(stream.name).read_text("utf-8") for stream in self._streams)
        return subprocess.CompletedProcess(self.args, self.returncode, stdout, stderr)


def start(*argv: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Command:
    """Start a command. env: variables besides those of the tests."""
    return Command(argv, cwd, env or {})


def postmill(
    *argv: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """One command to its end, as `commands.postmill`."""
    return start(*argv, cwd=cwd, env=env).end()


@functools.cache
def _server() -> tuple[IO[str], IO[str]]:
    """The process that forks, started when it is first asked."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-P", __file__], stdin=pipe, stdout=pipe, text=True)
    assert server.stdin is not None and server.stdout is not None
    atexit.register(server.stdin.close)
    return server.stdin, server.stdout


def _ask(request: dict[str, Any]) -> Any:
    said, answered = _server()
    said.write(json.dumps(request) + "\n")
    said.flush()
    return json.loads(answered.readline())


def _child(argv: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> None:
    """Be the command, in a forked process, and leave."""
    code: Any = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for fd, path in enumerate((os.devnull, *streams)):
            os.dup2(os.open(path, os.O_RDWR), fd)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        sys.path[:0] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
        sys.argv = argv
        from postmill.cli.main import main

        main()
    except SystemExit as left:
        code = left.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    """Fork for each line of stdin, or say how a child ended, until stdin ends."""
    lines, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what an import may print is no answer
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in lines:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answers.write(json.dumps(os.waitstatus_to_exitcode(status) if pid else None) + "\n")
        elif pid := os.fork():
            answers.write(json.dumps(pid) + "\n")
        else:
            _child(**request)


if __name__ == "__main__":
    _serve()
