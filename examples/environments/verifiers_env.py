"""An environment of `verifiers` (0.4 or newer) plays the conversations: its tasks, its turns, its rewards.

    postmill rollout prompts/ -m base/ -o rollouts/ --env 'verifiers/bin/python verifiers_env.py verifiers_guess.toml'
    postmill reward rollouts/ --func env -o rewards/

`verifiers/` is an environment with `pip install verifiers`. The file has the table `[env]` of a run of verifiers: which
taskset, which harness, which runtime. Modules beside the file are found, as installed ones are. A row's column `task`
is the number of its task; the prompts that the environment sends take the place of the row's.

In verifiers a harness asks an endpoint for answers. Here that endpoint is in this program: a request becomes what the
model is told, and the model's answer becomes the response. The reward of the episode comes with the last answer. A
harness that rewrites what was said before cannot be played turn by turn, which is an error of its conversation.
"""

import asyncio
import contextlib
import json
import sys
import time
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import lines
import verifiers.v1 as vf
from aiohttp import web
from verifiers.v1 import load_environment, resolve_env_config

Asked = tuple[dict[str, Any], "asyncio.Future[dict[str, Any]]"]
"""A request's body, and where its answer is put."""


class Desk:
    """The endpoint: requests of each conversation wait for their answers."""

    def __init__(self) -> None:
        self.asked: dict[str, asyncio.Queue[Asked]] = {}
        self.port = 0

    async def open(self) -> None:
        """Listen, on this machine only."""
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/{name}/v1/chat/completions", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        place: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.asked[request.match_info["name"]].put_nowait((body, place))
        choice = await place
        about = {"id": "answer", "created": int(time.time()), "model": body["model"]}
        if not body.get("stream"):
            return web.json_response(about | {"object": "chat.completion", "choices": [choice]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        message = choice.pop("message")
        calls = [call | {"index": n} for n, call in enumerate(message.get("tool_calls", []))]
        delta = message | ({"tool_calls": calls} if calls else {})
        event = about | {"object": "chat.completion.chunk", "choices": [choice | {"delta": delta}]}
        await response.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())
        return response


class Worlds:
    """The environment of one file."""

    def __init__(self, file: Path) -> None:
        sys.path.insert(0, str(file.resolve().parent))
        self._env = load_environment(resolve_env_config(tomllib.loads(file.read_text())["env"]))
        self._tasks = list(self._env.taskset.take(1 << 20))
        self._desk, self._count = lines.Shared(self._open), 0

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Desk]:
        desk = Desk()
        async with self._env.serving():
            await desk.open()
            yield desk

    async def world(self, row: dict[str, Any], seed: int, tell: lines.Tell) -> dict[str, Any]:
        """An episode of the row's task."""
        task = self._tasks[int(row["task"])]
        desk = await self._desk.get()
        self._count += 1
        name = str(self._count)
        desk.asked[name] = asyncio.Queue()
        client = vf.EvalClientConfig(base_url=f"http://127.0.0.1:{desk.port}/{name}/v1", api_key_var="NO_KEY")
        episode = asyncio.create_task(self._env.run_episode(task, vf.ModelContext(model="policy", client=client)))
        try:
            await _play(desk.asked[name], episode, tell)
            return {"reward": _reward(await episode)}
        finally:
            episode.cancel()
            await asyncio.wait([episode])


async def _play(asked: "asyncio.Queue[Asked]", episode: "asyncio.Task[vf.Episode]", tell: lines.Tell) -> None:
    """Answer what the episode asks until it is over."""
    past: list[dict[str, Any]] = []
    while True:
        waiting = asyncio.create_task(asked.get())
        await asyncio.wait({waiting, episode}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            return
        body, place = waiting.result()
        messages = [_message(one) for one in body["messages"]]
        if messages[: len(past)] != past:
            raise ValueError("the harness asks with another past than it had; it cannot be played turn by turn")
        said = {"messages": messages[len(past) :]}
        step = await tell(said if past else said | {"tools": body.get("tools") or []})
        answer = _spoken(step, len(past))
        past = [*messages, _message(answer)]
        finish = "length" if step["finish"] == "length" else "tool_calls" if step["calls"] else "stop"
        place.set_result({"index": 0, "message": answer, "finish_reason": finish})


def _spoken(step: dict[str, Any], turn: int) -> dict[str, Any]:
    """An answer of the model, as a response has it."""
    if not step["calls"]:
        return {"role": "assistant", "content": step["text"]}
    calls = [
        {
            "id": f"call-{turn}-{number}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
        }
        for number, call in enumerate(step["calls"])
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _message(one: dict[str, Any]) -> dict[str, Any]:
    """A message of a request, as chat templates are given it."""
    content = one.get("content") or ""
    if isinstance(content, list):
        if any(part["type"] != "text" for part in content):
            raise ValueError(f"a message of the {one['role']} is no text")
        content = "".join(part["text"] for part in content)
    kept = {key: one[key] for key in ("name", "tool_call_id", "tool_calls") if one.get(key)}
    return {"role": one["role"], "content": content} | kept


def _reward(episode: vf.Episode) -> float:
    """What the episode is worth. Raises where it failed."""
    errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
    if errors:
        raise RuntimeError(f"{errors[0].type}: {errors[0].message}")
    return sum(trace.reward for trace in episode.traces)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        lines.fail("expected a TOML file with the table [env] of a run of verifiers")
    lines.serve(Worlds(Path(sys.argv[1])).world)
