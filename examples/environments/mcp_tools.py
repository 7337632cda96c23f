"""The tools of any MCP server become the conversation's tools; calls go to the server, what it says comes back.

    postmill rollout prompts/ -m base/ --agent-format hermes -o rollouts/ \\
        --env 'mcp/bin/python mcp_tools.py mcp/bin/python mcp_server.py'

`mcp/` is an environment with `pip install mcp` (2 or newer). Behind `mcp_tools.py` stands the command that starts the
server, or the URL of one that runs (`http://127.0.0.1:8000/mcp`). Each conversation starts a server of its own, since a
server may remember what it was asked; with `--shared` in front one serves them all. An answer without a call ends the
conversation. A call that the server refuses is told to the model; a server that dies is an error of its conversation.
"""

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import lines
from mcp import Client, StdioServerParameters
from mcp.types import TextContent


class Server:
    """What `mcp_tools.py` was told to use."""

    def __init__(self, words: list[str]) -> None:
        self._is_shared = words[:1] == ["--shared"]
        self._words = words[self._is_shared :]
        if not self._words:
            lines.fail("expected the command that starts an MCP server, or the URL of one")
        self._one = lines.Shared(self._client)

    def _client(self) -> Client:
        first, *rest = self._words
        return Client(first if "://" in first else StdioServerParameters(command=first, args=rest))

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """A client of a server of its own, or of the one that all share."""
        if self._is_shared:
            yield await self._one.get()
        else:
            async with self._client() as client:
                yield client

    async def world(self, row: dict[str, Any], seed: int, tell: lines.Tell) -> dict[str, Any]:
        """A conversation with the server's tools."""
        async with self.connected() as client:
            step = await tell({"tools": await _tools(client)})
            while step["calls"]:
                step = await tell({"messages": [await _called(client, call) for call in step["calls"]]})
        return {}


async def _tools(client: Client) -> list[dict[str, Any]]:
    """The server's tools, as chat templates are given them."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            about = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
            found.append({"type": "function", "function": about})
        cursor = page.next_cursor
        if cursor is None:
            return found


async def _called(client: Client, call: dict[str, Any]) -> dict[str, Any]:
    """What a tool answers, as a message; what is not text is named in it."""
    result = await client.call_tool(call["name"], call["arguments"])
    parts = [part.text if isinstance(part, TextContent) else f"[{part.type}]" for part in result.content]
    text = "\n".join(parts)
    return {"role": "tool", "name": call["name"], "content": f"error: {text}" if result.is_error else text}


if __name__ == "__main__":
    lines.serve(Server(sys.argv[1:]).world)
