"""An environment behind an OpenEnv server plays the conversations: its `reset` and its `step`, one session for each.

    openenv/bin/python openenv_server.py 8123 &
    postmill rollout prompts/ -m base/ -o rollouts/ \\
        --env 'openenv/bin/python openenv_env.py http://127.0.0.1:8123 --action guess --say hint'

`openenv/` is an environment with `pip install openenv-core`. With `--action FIELD` the text of an answer is that field
of the action. Without it the action is what the model calls the tool `act` with, whose parameters are the server's
schema of actions; an answer without a call ends the conversation. With `--say FIELD` the model is told that field of
each observation, without it the whole observation as JSON. A row's column `reset`, an object, is what `reset` is given
besides the seed.
"""

import argparse
import asyncio
import json
import urllib.request
from typing import Any

import lines
from openenv.core import GenericEnvClient

_SEEDS = 2**31


class Place:
    """A server, and how to speak with it."""

    def __init__(self, url: str, action: str | None, say: str | None) -> None:
        self._url, self._action, self._say = url.rstrip("/"), action, say

    async def world(self, row: dict[str, Any], seed: int, tell: lines.Tell) -> dict[str, Any]:
        """A conversation with the environment."""
        tools = None if self._action else [_tool(await asyncio.to_thread(self._schema))]
        async with GenericEnvClient(base_url=self._url) as env:
            begun = await env.reset(seed=seed % _SEEDS, **row.get("reset", {}))
            start = {"messages": _begin(row["messages"], self._text(begun.observation))}
            step = await tell(start | ({"tools": tools} if tools else {}))
            while actions := self._actions(step):
                said, reward, done = await self._play(env, actions)
                told = {"messages": said, "reward": reward}
                if done:
                    return told
                step = await tell(told)
        return {}

    async def _play(self, env: Any, actions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float | None, bool]:
        """What an answer leads to: messages, reward, whether that was the end."""
        said: list[dict[str, Any]] = []
        rewards: list[float] = []
        for action in actions:
            result = await env.step(action)
            about = {"role": "user"} if self._action else {"role": "tool", "name": "act"}
            said.append(about | {"content": self._text(result.observation)})
            rewards += [] if result.reward is None else [float(result.reward)]
            if result.done:
                return said, sum(rewards) if rewards else None, True
        return said, sum(rewards) if rewards else None, False

    def _actions(self, step: dict[str, Any]) -> list[dict[str, Any]]:
        if self._action:
            return [{self._action: step["text"]}]
        return [call["arguments"] for call in step["calls"]]

    def _schema(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}/schema", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)["action"]
            return found

    def _text(self, observation: dict[str, Any]) -> str:
        return str(observation[self._say]) if self._say else json.dumps(observation, ensure_ascii=False)


def _tool(schema: dict[str, Any]) -> dict[str, Any]:
    shown = {name: field for name, field in schema["properties"].items() if name != "metadata"}
    about = {"name": "act", "description": "Do something.", "parameters": schema | {"properties": shown}}
    return {"type": "function", "function": about}


def _begin(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """The prompt, and below it what is seen first."""
    if not messages or messages[-1]["role"] != "user":
        return [*messages, {"role": "user", "content": text}]
    last = messages[-1]
    return [*messages[:-1], last | {"content": f"{last['content']}\n\n{text}"}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="where the server runs, as http://127.0.0.1:8123")
    parser.add_argument("--action", help="field of the action that an answer's text is")
    parser.add_argument("--say", help="field of the observation that the model is told")
    given = parser.parse_args()
    lines.serve(Place(given.url, given.action, given.say).world)
