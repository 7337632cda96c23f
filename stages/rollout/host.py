"""Environments and tools in processes of their own, asked in lines of JSON: a call that hangs or crashes costs its
conversation and no other.

Each process holds many conversations. If it has to be ended, those that were not in hand are told to a new one again,
call by call, and have to answer as before: an environment is a function of its row, its seed and what it was told.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from postmill.io.json_file import NOT_JSON
from postmill.stages.shared.child_limits import bare_environment

_START_S = 60.0
"""Longest time to start a process, on top of the time of its first call."""
_LONGEST_LINE = 16 << 20


class EnvironmentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What an environment answers to `reset` or `step`."""

    id: str
    messages: list[dict[str, Any]] = []
    """After `step`: what the model is told next. After `reset`: the conversation, in place of the prompt's, if any."""
    tools: list[dict[str, Any]] | None = None
    """After `reset`: tools, in place of the prompt's, if any."""
    reward: float | None = None
    done: bool = False
    error: str | None = None


class Talk:
    """One conversation with an environment: what was asked and answered, and what time that took."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.past: list[tuple[dict[str, Any], EnvironmentAnswer]] = []
        self.seconds = 0.0


class _Failed(Exception):
    """The process is gone, or its answer cannot be read."""


class _Process:
    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=bare_environment(),
            start_new_session=True,
            bufsize=0,
        )
        self.knows: set[str] = set()
        """Conversations that it holds."""
        self._pending = b""
        self._grace_s = _START_S

    def ask(self, call: dict[str, Any], limit_s: float) -> EnvironmentAnswer:
        """The answer to one call. Raises _Failed after which the process cannot be used."""
        deadline = time.monotonic() + limit_s + self._grace_s
        try:
            line = self._exchange(msgspec.json.encode(call) + b"\n", deadline)
        except OSError:
            raise _Failed(self._death()) from None
        self._grace_s = 0.0
        try:
            said = msgspec.json.decode(line, type=EnvironmentAnswer)
        except NOT_JSON as error:
            raise _Failed(f"answer cannot be read: {error}"[:300]) from None
        if said.id != call["id"]:
            raise _Failed(f"answer is to {said.id[:40]!r}, not to what was asked")
        return said

    def _exchange(self, data: bytes, deadline: float) -> bytes:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise _Failed("timeout")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                self._pending += piece
                if not piece:
                    raise _Failed(self._death())
                if len(self._pending) > _LONGEST_LINE:
                    raise _Failed(f"an answer of more than {_LONGEST_LINE >> 20} MB")
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def _death(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(5.0)
            return f"crashed:{signal.Signals(-code).name if code < 0 else f'exit {code}'}"
        return "crashed: closed its output"

    def end(self) -> None:
        """Kill it with all that it started, and reap it."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class Host:
    """`num_processes` processes of one program. Close it, or use it in a `with`."""

    def __init__(self, argv: Sequence[str], num_processes: int, *, call_limit_s: float, time_limit_s: float) -> None:
        """time_limit_s: of all calls of one conversation together; 0 is none."""
        self._argv, self._call_limit_s, self._time_limit_s = argv, call_limit_s, time_limit_s
        self._processes: list[_Process | None] = [None] * num_processes
        # for as long as the host: a process ends with the thread that started it
        self._threads = ThreadPoolExecutor(num_processes)

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process is not None:
                process.end()
        self._threads.shutdown()

    def ask(self, asked: Sequence[tuple[Talk, dict[str, Any]]]) -> list[EnvironmentAnswer]:
        """An answer to each call, in order; a call that fails has an `error`. Conversations stay with their process."""
        by_process: list[list[int]] = [[] for _ in self._processes]
        for number, (talk, _) in enumerate(asked):
            by_process[zlib.crc32(talk.name.encode()) % len(self._processes)].append(number)
        found: dict[int, EnvironmentAnswer] = {}

        def serve(place: int) -> None:
            for number in by_process[place]:
                found[number] = self._one(place, *asked[number])

        list(self._threads.map(serve, range(len(self._processes))))
        return [found[number] for number in range(len(asked))]

    def _one(self, place: int, talk: Talk, call: dict[str, Any]) -> EnvironmentAnswer:
        call = {"id": talk.name} | call
        started = time.monotonic()
        try:
            process = self._knowing(place, talk)
            said = process.ask(call, self._limit(talk))
        except _Failed as failure:
            self._drop(place)
            said = EnvironmentAnswer(id=talk.name, error=str(failure))
        talk.seconds += time.monotonic() - started
        talk.past.append((call, said))
        return said

    def _limit(self, talk: Talk) -> float:
        if not self._time_limit_s:
            return self._call_limit_s
        return min(self._call_limit_s, max(self._time_limit_s - talk.seconds, 0.0))

    def _knowing(self, place: int, talk: Talk) -> _Process:
        """The process, told all of this conversation. Raises _Failed."""
        process = self._processes[place]
        if process is None:
            process = self._processes[place] = _Process(self._argv)
        if talk.name not in process.knows:
            for call, said in talk.past:
                if process.ask(call, self._call_limit_s) != said:
                    raise _Failed("told the same again, the environment answered otherwise")
            process.knows.add(talk.name)
        return process

    def _drop(self, place: int) -> None:
        process, self._processes[place] = self._processes[place], None
        if process is not None:
            process.end()


def python_argv(mode: str, references: Sequence[str], memory_mb: int) -> list[str]:
    """The program that speaks for a class (`env`) or for functions (`tools`) of Python files."""
    worker = [sys.executable, "-P", "-m", "postmill.stages.rollout.env_worker"]
    return [*worker, mode, str(memory_mb), str(os.getpid()), *references]
