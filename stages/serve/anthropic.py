"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's words over the same chat."""

import json
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from postmill.io.digest import digest_bytes
from postmill.stages.serve.constraints import read_constraint
from postmill.stages.serve.conversation import read_messages, read_tools
from postmill.stages.serve.errors import ApiError, invalid, unsupported
from postmill.stages.serve.fields import Common, Messages
from postmill.stages.serve.sampling import read_sampling
from postmill.stages.serve.service import Ask, Prompt, Service
from postmill.stages.serve.tool_choice import read_tool_choice, tool_constraint
from postmill.stages.shared.agent_formats.parser import Part
from postmill.stages.shared.engine.protocol import Reply


def to_messages(body: Messages) -> list[dict[str, Any]]:
    """The conversation as OpenAI's messages. Raises ApiError (400)."""
    converted: list[dict[str, Any]] = []
    if body.system is not None:
        converted.append({"role": "system", "content": _text(body.system, "system")})
    for number, message in enumerate(body.messages):
        place, role = f"messages.{number}", message.get("role")
        if role not in ("user", "assistant"):
            raise ApiError(400, "invalid_messages", f"{place}.role: {role!r}: expected user or assistant.", place)
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise ApiError(400, "invalid_messages", f"{place}.content: expected text or a list of blocks.", place)
        converted += _assistant(blocks, place) if role == "assistant" else _user(blocks, place)
    return converted


def _text(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    parts = [block.get("text") for block in value if isinstance(block, dict)] if isinstance(value, list) else [None]
    if not all(isinstance(part, str) for part in parts) or len(parts) != len(value):
        raise ApiError(400, "invalid_messages", f"{place}: expected text, or blocks of text.", place)
    return "".join(str(part) for part in parts)


def _assistant(blocks: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            message["content"] += _text(block.get("text"), place)
        elif kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + _text(block.get("thinking"), place)
        elif kind == "tool_use":
            call = {"name": block.get("name"), "arguments": block.get("input", {})}
            message.setdefault("tool_calls", []).append({"id": block.get("id"), "type": "function", "function": call})
        elif kind != "redacted_thinking":
            raise unsupported(place, f"{place}: a block of type {kind!r} is not served.")
    return [message]


def _user(blocks: list[dict[str, Any]], place: str) -> list[dict[str, Any]]:
    """Results of tools come first, each as a message of its own."""
    converted: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "text":
            parts.append({"type": "text", "text": _text(block.get("text"), place)})
        elif kind == "image":
            parts.append(block)
        elif kind == "tool_result":
            content = _text(block.get("content") or "", place)
            failed = "Error: " if block.get("is_error") else ""
            converted.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": failed + content})
        else:
            raise unsupported(place, f"{place}: a block of type {kind!r} is not served.")
    if parts or not converted:
        converted.append({"role": "user", "content": parts})
    return converted


def to_tools(body: Messages) -> list[dict[str, Any]] | None:
    """Tools as OpenAI's functions."""
    functions = []
    for number, tool in enumerate(body.tools or []):
        if tool.get("type", "custom") != "custom":
            raise unsupported(
                f"tools.{number}", f"tools.{number}: {tool['type']!r}: only tools of the caller are served."
            )
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        function |= {name: tool[name] for name in ("description", "strict") if name in tool}
        functions.append({"type": "function", "function": function})
    return functions or None


def to_tool_choice(body: Messages) -> str | dict[str, Any] | None:
    """Which tool has to be called, in OpenAI's words. Raises ApiError (400)."""
    choice = body.tool_choice or {"type": "auto"}
    words: dict[Any, Any] = {"auto": "auto", "none": "none", "any": "required"}
    if choice.get("type") == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") not in words:
        raise invalid("tool_choice", "tool_choice.type: expected auto, any, tool or none.")
    choice_word: str = words[choice.get("type")]
    return choice_word


async def prompt(service: Service, body: Messages) -> Prompt:
    """The conversation as the model reads it. Raises ApiError (400)."""
    options: dict[str, Any] = {}
    if body.thinking is not None:
        options["enable_thinking"] = body.thinking.type == "enabled"
    messages = read_messages(to_messages(body), pictures=service.reads_pictures)
    return await service.read(messages, tools=read_tools(to_tools(body)), **options)


async def prepare(service: Service, body: Messages) -> Ask:
    """The request in the engine's terms. Raises ApiError (400, 404)."""
    model = service.model(body.model)
    if body.max_tokens is None:
        raise ApiError(400, "missing_required_parameter", "Missing required parameter: 'max_tokens'.", "max_tokens")
    ids, inputs = await prompt(service, body)
    tools, choice = to_tools(body), to_tool_choice(body)
    is_reasoning = service.is_reasoning(ids)
    wanted = read_tool_choice(choice, tools)
    stop = list(body.stop_sequences or [])
    if any(not text.strip() for text in stop):
        raise invalid("stop_sequences", "stop_sequences: each has to hold more than white space.")
    common = Common(
        model=body.model, temperature=body.temperature, top_p=body.top_p, top_k=body.top_k or None, stop=stop or None
    )
    sampling = read_sampling(service, common, ids, min(body.max_tokens, service.cfg.max_new_tokens), "messages")
    constraint = await read_constraint(
        service,
        common,
        is_reasoning=is_reasoning,
        calls=None if choice == "none" else tool_constraint(service, wanted, tools),
    )
    return Ask(
        id=f"msg_{secrets.token_hex(12)}",
        model=model,
        prompt_ids=ids,
        inputs=inputs,
        sampling=msgspec.structs.replace(sampling, constraint=constraint),
        seeds=service.seeds(None, 1),
        tools=tools,
        agent_format=service.agent_format if tools and choice != "none" else "",
        reasons=service.reasons,
        is_reasoning=is_reasoning,
    )


def _stop_reason(reply: Reply) -> dict[str, str | None]:
    if reply.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": reply.stop}
    reason = "max_tokens" if reply.finish == "length" else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(ask: Ask, reply: Reply | None) -> dict[str, int]:
    return {
        "input_tokens": len(ask.prompt_ids),
        "output_tokens": len(reply.ids) if reply else 0,
        "cache_read_input_tokens": reply.cached_tokens if reply else 0,
        "cache_creation_input_tokens": 0,
    }


def _message(ask: Ask, body: Messages, content: list[dict[str, Any]], reply: Reply | None) -> dict[str, Any]:
    end = _stop_reason(reply) if reply else {"stop_reason": None, "stop_sequence": None}
    head = {"id": ask.id, "type": "message", "role": "assistant", "model": body.model, "content": content}
    return head | end | {"usage": _usage(ask, reply)}


async def answer(service: Service, body: Messages, ask: Ask) -> dict[str, Any]:
    """The whole answer."""
    (reply,) = await service.whole(ask)
    parser = ask.parser()
    blocks: list[dict[str, Any]] = []
    for part in [*parser.push(reply.text), *parser.finish()]:
        kind, text = _kind(part)
        if part.call is not None:
            blocks.append(_tool_use(ask, len(blocks), part.call) | {"input": part.call["arguments"]})
        elif blocks and blocks[-1]["type"] == kind:
            blocks[-1][kind] += text
        else:
            blocks.append({"type": kind, kind: text} | ({"signature": ""} if kind == "thinking" else {}))
    message = _message(ask, body, blocks or [{"type": "text", "text": ""}], reply.reply)
    return message | ({"stop_reason": "tool_use"} if any(block["type"] == "tool_use" for block in blocks) else {})


def _kind(part: Part) -> tuple[str, str]:
    """The type of the block that a part belongs to, which is also the name of its text; and the text."""
    return ("thinking", part.reasoning) if part.reasoning else ("text", part.content)


def _tool_use(ask: Ask, index: int, call: dict[str, Any]) -> dict[str, Any]:
    name = digest_bytes(f"{ask.id}:{index}".encode())[7:31]
    return {"type": "tool_use", "id": f"toolu_{name}", "name": call["name"], "input": {}}


class Blocks:
    """The blocks of a stream: each is opened, filled and closed before the next."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._index, self._kind = -1, ""
        self.has_called = False

    def add(self, part: Part) -> list[dict[str, Any]]:
        """Events for a part."""
        if part.call is not None:
            self.has_called = True
            events = [*self.close(), *self._open("tool_use", _tool_use(self._ask, self._index + 1, part.call))]
            text = json.dumps(part.call["arguments"], ensure_ascii=False)
            return [*events, self._delta("input_json_delta", "partial_json", text), *self.close()]
        kind, text = _kind(part)
        events = []
        if kind != self._kind:
            block = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            events = [*self.close(), *self._open(kind, block)]
        return [*events, self._delta(f"{kind}_delta", kind, text)]

    def _open(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        self._index, self._kind = self._index + 1, kind
        return [{"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, kind: str, name: str, text: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, name: text}}

    def close(self) -> list[dict[str, Any]]:
        """End the block that is open."""
        if not self._kind:
            return []
        self._kind = ""
        return [{"type": "content_block_stop", "index": self._index}]


async def stream(service: Service, body: Messages, ask: Ask) -> AsyncIterator[dict[str, Any]]:
    """Events in Anthropic's order."""
    yield {"type": "message_start", "message": _message(ask, body, [], None)}
    yield {"type": "ping"}
    parser, blocks = ask.parser(), Blocks(ask)
    async for piece in service.answers(ask):
        parts = parser.push(piece.text)
        if piece.reply is not None:
            parts += parser.finish()
        for part in parts:
            for event in blocks.add(part):
                yield event
        if piece.reply is not None:
            for event in blocks.close():
                yield event
            end = _stop_reason(piece.reply) | ({"stop_reason": "tool_use"} if blocks.has_called else {})
            yield {"type": "message_delta", "delta": end, "usage": _usage(ask, piece.reply)}
    yield {"type": "message_stop"}


def event(data: dict[str, Any]) -> bytes:
    """One event of a stream, with its name."""
    return f"event: {data['type']}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


def error_event(body: dict[str, Any]) -> bytes:
    """An error after the stream has begun."""
    return f"event: error\ndata: {json.dumps(body)}\n\n".encode()
