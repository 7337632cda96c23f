"""The process that runs a Python environment, or functions as tools: a call a line in, an answer a line out.

What the code prints goes nowhere, so that it cannot be taken for an answer.
"""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from postmill.stages.shared.child_limits import limit_self
from postmill.stages.shared.python_file import load_file

_DETAIL_CHARACTERS = 300


def load(reference: str, number: int = 0) -> Any:
    """What `file.py:name` names."""
    path, _, name = reference.rpartition(":")
    return getattr(load_file(path, f"environment_file_{number}"), name)


class Tools:
    """The environment that functions make: it answers calls, and is done where there is none."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self._functions = functions

    def reset(self, row: dict[str, Any], seed: int) -> None:
        """Nothing to set up."""

    def step(self, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """A message of the tool for each call; one that fails says so in its message, for the model to read."""
        messages = [{"role": "tool", "name": call["name"], "content": self._answer(call)} for call in calls]
        return {"messages": messages, "done": not calls}

    def _answer(self, call: dict[str, Any]) -> str:
        name = call["name"]
        if name not in self._functions:
            return f"error: there is no tool {name}"
        try:
            value = wait_for(self._functions[name](**call["arguments"]))
        except Exception as error:  # what a model passes can make a function raise anything
            return f"error: {type(error).__name__}: {error}"[:_DETAIL_CHARACTERS]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def wait_for(value: Any) -> Any:
    """The value, or what a coroutine comes to."""
    return asyncio.run(_finish(value)) if inspect.isawaitable(value) else value


async def _finish(value: Any) -> Any:
    return await value


def answer_to(
    environments: dict[str, Any], make: Callable[[], Callable[..., Any]], call: dict[str, Any]
) -> dict[str, Any]:
    """The answer to one call, a dict for JSON. What an environment raises is an answer too."""
    name = call["id"]
    try:
        if call["call"] == "close":
            close = getattr(environments.pop(name, None), "close", None)
            found = wait_for(close()) if close is not None else None
            return {"id": name}
        if call["call"] == "judge":
            value = wait_for(make()(call["row"], call["text"]))
            return {"id": name, "reward": None if value is None else float(value)}
        if call["call"] == "reset":
            environments[name] = make()()
            found = wait_for(environments[name].reset(call["row"], call["seed"]))
        else:
            found = wait_for(environments[name].step(call["text"], call["calls"]))
        return {"id": name} | read(found, call["call"])
    except Exception as error:  # a strange row must cost that row alone
        return {"id": name, "error": f"raised {type(error).__name__}: {error}"[:_DETAIL_CHARACTERS]}


def read(found: Any, call: str) -> dict[str, Any]:
    """What an environment returned, in the form that is sent. Raises TypeError where it cannot be that."""
    if found is None:
        return {"done": call == "step"}
    if isinstance(found, (str, list)):
        found = {"messages": found}
    if not isinstance(found, dict) or found.keys() - {"messages", "tools", "reward", "done"}:
        raise TypeError(f"{call} returned {found!r}; expected messages, or a dict of messages, reward, done, tools")
    messages = found.get("messages") or []
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise TypeError(f"{call}: {message!r} is no message with a role and a text as content")
    reward = found.get("reward")
    done = bool(found.get("done")) or (call == "step" and not messages)
    return found | {"messages": messages, "reward": None if reward is None else float(reward), "done": done}


def maker(mode: str, references: list[str]) -> Callable[..., Any]:
    """What makes the environment of a conversation, or judges beginnings of answers."""
    loaded = [load(reference, number) for number, reference in enumerate(references)]
    if mode in ("env", "guide"):
        made: Callable[..., Any] = loaded[0]
        return made
    names = [reference.rpartition(":")[2] for reference in references]
    return lambda: Tools(dict(zip(names, loaded, strict=True)))


def main() -> None:
    """Answer calls until stdin ends. Arguments: env, tools or guide, memory limit, parent's id, references."""
    mode, memory_mb, parent, *references = sys.argv[1:]
    limit_self(int(memory_mb))
    if os.getppid() != int(parent):  # the parent died before it could be watched
        return
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    environments: dict[str, Any] = {}
    make = cache(lambda: maker(mode, references))
    for line in calls:
        found = answer_to(environments, make, json.loads(line))
        try:
            data = json.dumps(found, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            data = json.dumps({"id": found["id"], "error": f"answer is no JSON: {error}"[:_DETAIL_CHARACTERS]}).encode()
        answers.write(data + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
