"""Speaks for an environment in lines of JSON, as `postmill rollout --env` reads them; needs nothing but Python.

A world is a coroutine that plays one conversation:

    async def world(row, seed, tell):
        step = await tell({"messages": [...], "tools": [...]})   # how it begins, or {}: the prompt as it is
        step = await tell({"messages": [...], "reward": 0.5})    # step: {"text": ..., "calls": [...], "finish": ...}
        return {"reward": 1.0}                                    # the last word

    if __name__ == "__main__":
        lines.serve(world)

Each conversation is a task of its own, so that what a world has opened is closed where it was opened. What a world
raises is an error of its conversation alone. What it prints goes nowhere, so that it cannot be taken for an answer.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

Tell = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
World = Callable[[dict[str, Any], int, Tell], Awaitable[dict[str, Any]]]
T = TypeVar("T")


class Shared(Generic[T]):
    """One thing for all conversations: the first opens it, and a task of its own holds it."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._make = make
        self._found: asyncio.Future[T] | None = None

    async def get(self) -> T:
        """It, opened. Raises what opening it raised."""
        if self._found is None:
            self._found = asyncio.get_running_loop().create_future()
            self._keeper = asyncio.create_task(self._keep(self._found))
        return await asyncio.shield(self._found)

    async def _keep(self, found: "asyncio.Future[T]") -> None:
        try:
            async with self._make() as opened:
                found.set_result(opened)
                await asyncio.Event().wait()
        except Exception as error:  # whoever waits for it is told
            if not found.done():
                found.set_exception(error)


class Talk:
    """One conversation with a world."""

    def __init__(self, world: World, row: dict[str, Any], seed: int) -> None:
        self._steps: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._task = asyncio.create_task(self._play(world, row, seed))

    async def _play(self, world: World, row: dict[str, Any], seed: int) -> None:
        try:
            said = {"done": True} | await world(row, seed, self._tell)
        except Exception as error:  # whatever goes wrong in a world costs its conversation
            said = {"error": f"raised {_reason(error)}"[:300]}
        self._answers.put_nowait(said)

    async def _tell(self, answer: dict[str, Any]) -> dict[str, Any]:
        self._answers.put_nowait(answer)
        return await self._steps.get()

    async def reset(self) -> dict[str, Any]:
        """How the conversation begins."""
        said = await self._answers.get()
        return {"error": "the world ended before its first word"} if said.pop("done", False) else said

    async def step(self, step: dict[str, Any]) -> dict[str, Any]:
        """What the world says to an answer of the model."""
        self._steps.put_nowait(step)
        return await self._answers.get()

    async def close(self) -> dict[str, Any]:
        """End it where it stands."""
        self._task.cancel()
        await asyncio.wait([self._task])
        return {}


def _reason(error: BaseException) -> str:
    """What happened, in one line; of several errors together, the first."""
    while nested := getattr(error, "exceptions", None):
        error = nested[0]
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


async def _answer(talks: dict[str, Talk], world: World, call: dict[str, Any]) -> dict[str, Any]:
    name = call["id"]
    if call["call"] == "reset":
        talks[name] = Talk(world, call["row"], call["seed"])
        return await talks[name].reset()
    if call["call"] == "step":
        return await talks[name].step({key: call.get(key) for key in ("text", "calls", "finish")})
    talk = talks.pop(name, None)
    return await talk.close() if talk else {}


async def _serve(world: World, calls: Any, answers: Any) -> None:
    talks: dict[str, Talk] = {}
    while line := await asyncio.to_thread(calls.readline):
        call = json.loads(line)
        said = {"id": call["id"]} | await _answer(talks, world, call)
        answers.write(json.dumps(said).encode() + b"\n")
        answers.flush()
    for talk in talks.values():
        await talk.close()


def serve(world: World) -> None:
    """Answer calls until stdin ends."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    asyncio.run(_serve(world, calls, answers))


def fail(message: str) -> None:
    """End with a line of what is wrong with the command."""
    sys.exit(f"{Path(sys.argv[0]).name}: {message}")
