"""The process that runs reward functions: one row after the other, answers as they come. The pool ends it.

It has a session of its own, so that everything it starts can be killed with it, and limits on memory, file size and
open files. Messages are msgpack with their length before them, on two pipes; what functions print goes nowhere.
"""

import inspect
import math
import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import msgspec

from postmill.stages.reward.functions import BUILT_IN, GROUP, REASONING_GYM, reasoning_gym
from postmill.stages.reward.row import NOT_LOADED, READY, Answer, Row, Task
from postmill.stages.shared.child_limits import limit_self
from postmill.stages.shared.python_file import load_file
from postmill.stages.tables import added, find

_DETAIL_CHARACTERS = 300


def load(reference: str, options: dict[str, Any]) -> Callable[[Row], Any]:
    """The function that a task names, ready to take a row."""
    if reference in BUILT_IN:
        built_in, _ = BUILT_IN[reference]
        return lambda row: built_in(row, options)
    others = added(GROUP)
    if reference in others:
        return _callable(find("--func", GROUP, {}, reference))
    path, _, name = reference.rpartition(":")
    if path == REASONING_GYM:
        return reasoning_gym(name)
    return _callable(getattr(load_file(path, "reward_file"), name))


def _callable(loaded: Any) -> Callable[[Row], Any]:
    """A function as it is, a class as an object of it."""
    if inspect.isclass(loaded):
        loaded = loaded()
    function: Callable[[Row], Any] = loaded
    return function


def judge(function: Callable[[Row], Any], row: Row) -> Answer:
    """The answer for one row; whatever the function raises is an answer as well."""
    try:
        value = function(row)
        if inspect.isawaitable(value):
            import asyncio  # a third of the time that a worker takes to start

            value = asyncio.run(_finish(value))
    except MemoryError:
        return Answer(reason="memory", detail="MemoryError")
    except Exception as error:  # a strange row must cost that row alone
        return Answer(reason="raised", detail=f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS])
    if value is None:
        return Answer()
    if not isinstance(value, (int, float)):
        return Answer(reason="wrong_type", detail=f"{type(value).__name__} {value!r}"[:_DETAIL_CHARACTERS])
    number = float(value)
    return Answer(score=number) if math.isfinite(number) else Answer(reason="not_a_number", detail=repr(value))


async def _finish(value: Any) -> Any:
    return await value


def read_message(source: BinaryIO) -> bytes:
    """The next message; empty at the end of the pipe."""
    head = source.read(4)
    return source.read(struct.unpack("<I", head)[0]) if len(head) == 4 else b""


def write_message(sink: BinaryIO, data: bytes) -> None:
    """One message, at once."""
    sink.write(struct.pack("<I", len(data)) + data)
    sink.flush()


def serve(read_from: int, write_to: int, memory_mb: int, parent: int) -> None:
    """Answer tasks until the pipe ends: descriptors to read and to write, limit of memory, the parent's id."""
    limit_self(memory_mb)
    if os.getppid() != parent:  # the parent died before it could be watched
        return
    tasks, answers = os.fdopen(read_from, "rb"), os.fdopen(write_to, "wb")
    functions: dict[str, Callable[[Row], Any]] = {}
    while data := read_message(tasks):
        task = msgspec.msgpack.decode(data, type=Task)
        ready = Answer(reason=READY)
        if task.function not in functions:
            try:
                functions[task.function] = load(task.function, task.options)
            except Exception as error:  # a file of code can raise anything; the pool ends the run with it
                ready = Answer(reason=NOT_LOADED, detail=f"{type(error).__name__}: {error}"[:_DETAIL_CHARACTERS])
        write_message(answers, msgspec.msgpack.encode(ready))
        for row in task.rows if ready.reason == READY else []:
            write_message(answers, msgspec.msgpack.encode(judge(functions[task.function], row)))
