"""Worker processes for reward functions: a row that hangs, crashes or leaks costs itself and nothing else.

Each worker holds one task of some rows and answers row by row; the deadline starts anew with each answer. A worker past
it, or dead, is killed with everything it started, reaped and replaced by one that is forked (`nursery.py`); the row in
hand gets no score and the reason, and the rows behind it go to another worker. One thread and `poll` serve all of them.
"""

import contextlib
import os
import select
import selectors
import signal
import struct
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from postmill.io.errors import FAILED, USAGE, ConfigError, StageError
from postmill.stages.reward.nursery import Nursery, read_number
from postmill.stages.reward.row import NOT_LOADED, READY, Answer, Row, Task

_ROWS_A_TASK = 32
_LOAD_S = 60.0
"""Longest time to start Python and to load a function, which counts against no row."""
_END_S = 1.0
"""How long a worker that closed its pipe may take to end by itself."""


class _Worker:
    """A process, the rows it holds, and its deadline."""

    def __init__(self, nursery: Nursery) -> None:
        task_out, self.tasks = os.pipe()
        self.answers, answer_in = os.pipe()
        self._told = nursery.start(task_out, answer_in)
        os.close(task_out)
        os.close(answer_in)
        os.set_blocking(self.answers, False)
        self.rows: deque[int] = deque()
        self.deadline = 0.0
        self.is_ready = False
        """Whether the function of the present task is loaded: before that, no row can be at fault."""
        self._pending = b""

    def give(self, task: Task, rows: list[int]) -> None:
        """Send a task; `rows` are the numbers of its rows. A worker that just died is found by its end of file."""
        data = msgspec.msgpack.encode(task)
        self.rows, self.is_ready = deque(rows), False
        self.deadline = time.monotonic() + _LOAD_S
        with contextlib.suppress(BrokenPipeError):
            view = memoryview(struct.pack("<I", len(data)) + data)
            while view:
                view = view[os.write(self.tasks, view) :]

    def read(self) -> tuple[list[Answer], bool]:
        """Answers that have come, and whether the worker is gone."""
        try:
            data = os.read(self.answers, 1 << 16)
        except BlockingIOError:
            return [], False
        self._pending += data
        found: list[Answer] = []
        while len(self._pending) >= 4:
            size = struct.unpack("<I", self._pending[:4])[0]
            if len(self._pending) < 4 + size:
                break
            found.append(msgspec.msgpack.decode(self._pending[4 : 4 + size], type=Answer))
            self._pending = self._pending[4 + size :]
        return found, not data

    def end(self, *, is_gone: bool = False) -> str:
        """Kill it with all that it started, and have it reaped. Returns the signal that had ended it, or ""."""
        pid, code = read_number(self._told), None
        if is_gone and select.select([self._told], [], [], _END_S)[0]:
            code = read_number(self._told)
        if pid is not None:
            _kill(pid, has_ended=code is not None)
            if code is None:
                read_number(self._told)
        for descriptor in (self.tasks, self.answers, self._told):
            os.close(descriptor)
        return signal.Signals(-code).name if code is not None and code < 0 else ""


def _kill(pid: int, *, has_ended: bool) -> None:
    """A worker and all of its session; the number of one that has ended may be another's by now."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
        return
    if not has_ended:  # it had no session of its own yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Pool:
    """Runs functions over rows in `num_workers` processes. Close it, or use it in a `with`."""

    def __init__(self, num_workers: int, *, time_limit_s: float, memory_mb: int) -> None:
        self._limit_s, self._memory_mb = time_limit_s, memory_mb
        self._selector = selectors.DefaultSelector()
        self._num_failed_starts = 0
        self._nursery = Nursery(memory_mb)
        self._workers = [self._start() for _ in range(num_workers)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._selector.unregister(worker.answers)
            worker.end()
        self._selector.close()
        self._nursery.close()

    def run(self, function: str, options: dict[str, Any], rows: list[Row]) -> Iterator[tuple[int, Answer]]:
        """(number of the row, answer) for every row, as answers come.

        Raises ConfigError (2) for a function that cannot be loaded, StageError (1) if workers do not start.
        """
        queue = deque(range(len(rows)))
        num_open = len(rows)
        while num_open:
            for worker in self._workers:
                if queue and not worker.rows:
                    numbers = [queue.popleft() for _ in range(min(_ROWS_A_TASK, len(queue)))]
                    worker.give(Task(function=function, options=options, rows=[rows[n] for n in numbers]), numbers)
            for worker, answers, reason in self._wait():
                done = self._take(worker, function, answers)
                if reason:
                    done += self._replace(worker, queue, reason)
                num_open -= len(done)
                yield from done

    def _take(self, worker: _Worker, function: str, answers: list[Answer]) -> list[tuple[int, Answer]]:
        """Answers by row; each starts the time of the next one."""
        if answers:
            worker.deadline = time.monotonic() + self._limit_s
        done: list[tuple[int, Answer]] = []
        for answer in answers:
            if answer.reason == NOT_LOADED:
                raise ConfigError(f"--func {function}: cannot be loaded: {answer.detail}", USAGE)
            if answer.reason == READY:
                worker.is_ready, self._num_failed_starts = True, 0
            else:
                done.append((worker.rows.popleft(), answer))
        return done

    def _replace(self, worker: _Worker, queue: deque[int], reason: str) -> list[tuple[int, Answer]]:
        """A new worker for one that was ended: the row in hand pays, those behind it are asked again."""
        done: list[tuple[int, Answer]] = []
        if worker.rows and worker.is_ready:
            done.append((worker.rows.popleft(), Answer(reason=reason)))
        else:
            self._num_failed_starts += 1
            if self._num_failed_starts > 3 * len(self._workers):
                raise StageError(f"reward workers do not start ({reason}); raise --memory-mb", FAILED)
        queue.extendleft(reversed(worker.rows))
        self._workers[self._workers.index(worker)] = self._start()
        return done

    def _wait(self) -> list[tuple[_Worker, list[Answer], str]]:
        """Workers with news: their answers, and why they had to be ended, if so."""
        wait_s = min(worker.deadline for worker in self._workers if worker.rows) - time.monotonic()
        ready = {key.data for key, _ in self._selector.select(max(0.0, wait_s))}
        news: list[tuple[_Worker, list[Answer], str]] = []
        for worker in list(self._workers):
            answers, is_gone = worker.read() if worker in ready else ([], False)
            is_late = bool(worker.rows) and not answers and time.monotonic() >= worker.deadline
            reason = ""
            if is_gone or is_late:
                self._selector.unregister(worker.answers)
                ended_by = worker.end(is_gone=is_gone)
                reason = f"crashed:{ended_by or 'exit'}" if is_gone else "timeout"
            if answers or reason:
                news.append((worker, answers, reason))
        return news

    def _start(self) -> _Worker:
        if not self._nursery.is_alive:
            self._nursery.close()
            self._nursery = Nursery(self._memory_mb)
        worker = _Worker(self._nursery)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        return worker
