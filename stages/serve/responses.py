"""POST /v1/responses: OpenAI's newer words over the same chat.

Nothing is kept: each request brings its conversation.
"""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from postmill.stages.serve import chat
from postmill.stages.serve.errors import ApiError, unsupported
from postmill.stages.serve.fields import Chat, Respond
from postmill.stages.serve.service import Ask, Service
from postmill.stages.shared.agent_formats.parser import Part
from postmill.stages.shared.engine.protocol import Reply


async def prepare(service: Service, body: Respond) -> Ask:
    """The request in the engine's terms. Raises ApiError (400, 404)."""
    for name, value in (("store", body.store), ("previous_response_id", body.previous_response_id)):
        if value:
            raise unsupported(name, f"{name}: nothing is kept here; send the whole conversation.")
    if body.truncation not in (None, "disabled"):
        raise unsupported("truncation", "truncation: prompts are never cut.")
    ask = await chat.prepare(service, to_chat(body))
    return msgspec.structs.replace(ask, id=ask.id.replace("chatcmpl-", "resp_"))


def to_chat(body: Respond) -> Chat:
    """The same as a chat. Raises ApiError (400)."""
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for number, item in enumerate(items):
        _add(messages, item, f"input.{number}")
    tools = []
    for number, tool in enumerate(body.tools or []):
        if tool.get("type") != "function":
            raise unsupported(f"tools.{number}.type", f"tools.{number}.type: only functions are served.")
        kept = {
            name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None
        }
        tools.append({"type": "function", "function": kept})
    form = (body.text or {}).get("format") or {"type": "text"}
    if form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}
    return Chat(
        model=body.model,
        messages=messages,
        tools=tools or None,
        tool_choice=body.tool_choice,
        response_format=form,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        reasoning_effort=(body.reasoning or {}).get("effort"),
        seed=body.seed,
    )


def _add(messages: list[dict[str, Any]], item: dict[str, Any], place: str) -> None:
    """One item of the input, as a message or as a part of the last one. Raises ApiError (400)."""
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"), place)})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        _answer(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(item.get("output"), place)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    elif kind == "reasoning":
        parts = item.get("content") or []
        text = "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        messages.append({"role": "assistant", "content": "", "reasoning_content": text})
    else:
        raise unsupported(f"{place}.type", f"{place}.type: {kind!r} is not served.")


def _answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of the assistant that a call belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _content(content: Any, place: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ApiError(400, "invalid_messages", f"{place}: expected text or a list of parts.", place)
    named = {"input_text": "text", "output_text": "text", "input_image": "image_url"}
    parts = [part | {"type": named.get(str(part.get("type")), part.get("type"))} for part in content]
    return [
        {"type": "image_url", "image_url": {"url": part.get("image_url")}} if part["type"] == "image_url" else
        {"type": part["type"], "text": part.get("text")}
        for part in parts
    ]  # fmt: skip


class Items:
    """Items of the answer, as parts of it come; and the events that say so."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.done: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._text = ""
        self._num_calls = 0

    def add(self, part: Part) -> list[dict[str, Any]]:
        """Events of one part."""
        if part.call is not None:
            return [*self.close(), *self._call(part)]
        kind = "reasoning" if part.reasoning else "message"
        events = [] if self._open is not None and self._open["type"] == kind else [*self.close(), *self._begin(kind)]
        self._text += part.reasoning or part.content
        name = "response.reasoning_text.delta" if kind == "reasoning" else "response.output_text.delta"
        event = {"type": name, "delta": part.reasoning or part.content} | self._place()
        return [*events, event | ({} if kind == "reasoning" else {"logprobs": []})]

    def close(self, status: str = "completed") -> list[dict[str, Any]]:
        """End the item that is open."""
        if self._open is None:
            return []
        item, place = self._open, self._place()
        is_message = item["type"] == "message"
        part = _part(item["type"], self._text)
        name = "response.output_text.done" if is_message else "response.reasoning_text.done"
        item = item | {"status": status, "content": [part]}
        events = [{"type": name, "text": self._text} | place | ({"logprobs": []} if is_message else {})]
        if is_message:
            events.append({"type": "response.content_part.done", "part": part} | place)
        events.append({"type": "response.output_item.done", "output_index": len(self.done), "item": item})
        self.done.append(item)
        self._open, self._text = None, ""
        return events

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.done), "content_index": 0}

    def _begin(self, kind: str) -> list[dict[str, Any]]:
        prefix = "msg" if kind == "message" else "rs"
        own: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
        self._open = {
            "type": kind,
            "id": f"{prefix}_{self._ask.id[5:]}_{len(self.done)}",
            "status": "in_progress",
        } | own
        item = self._open | {"content": []}
        events = [{"type": "response.output_item.added", "output_index": len(self.done), "item": item}]
        if kind == "message":
            events.append({"type": "response.content_part.added", "part": _part(kind, "")} | self._place())
        return events

    def _call(self, part: Part) -> list[dict[str, Any]]:
        assert part.call is not None
        call = self._ask.call(0, self._num_calls, part.call)
        self._num_calls += 1
        at = len(self.done)
        item: dict[str, Any] = {
            "type": "function_call",
            "id": f"fc_{call['id'][5:]}",
            "call_id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
            "status": "completed",
        }
        self.done.append(item)
        place = {"item_id": item["id"], "output_index": at}
        events = "response.function_call_arguments"
        return [
            {
                "type": "response.output_item.added",
                "output_index": at,
                "item": item | {"arguments": "", "status": "in_progress"},
            },
            {"type": f"{events}.delta", "delta": item["arguments"]} | place,
            {"type": f"{events}.done", "arguments": item["arguments"], "name": item["name"]} | place,
            {"type": "response.output_item.done", "output_index": at, "item": item},
        ]


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}


def _response(
    body: Respond, ask: Ask, output: list[dict[str, Any]], reply: Reply | None, thought: int = 0
) -> dict[str, Any]:
    """The response as far as it is there. thought: tokens of its reasoning."""
    is_cut = reply is not None and reply.finish == "length"
    response: dict[str, Any] = {
        "id": ask.id,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress" if reply is None else "incomplete" if is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": body.reasoning,
        "store": False,
        "temperature": ask.sampling.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": ask.sampling.top_p,
        "truncation": "disabled",
        "usage": None,
    }
    if reply is not None:
        used = chat.usage(ask, [reply])
        response["usage"] = {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": used["prompt_tokens_details"],
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": used["total_tokens"],
        }
    return response


async def answer(service: Service, body: Respond, ask: Ask) -> dict[str, Any]:
    """The whole response."""
    async for event in stream(service, body, ask):
        if event["type"] in ("response.completed", "response.incomplete"):
            found: dict[str, Any] = event["response"]
            return found
    raise AssertionError("a stream ends with the response")


async def stream(service: Service, body: Respond, ask: Ask) -> AsyncIterator[dict[str, Any]]:
    """Events in OpenAI's order, numbered."""
    number = 0

    def numbered(event: dict[str, Any]) -> dict[str, Any]:
        nonlocal number
        number += 1
        return event | {"sequence_number": number - 1}

    for name in ("created", "in_progress"):
        yield numbered({"type": f"response.{name}", "response": _response(body, ask, [], None)})
    parser, items = ask.parser(), Items(ask)
    async for piece in service.answers(ask):
        parts = parser.push(piece.text) + (parser.finish() if piece.reply is not None else [])
        for part in parts:
            for event in items.add(part):
                yield numbered(event)
        if piece.reply is not None:
            is_cut = piece.reply.finish == "length"
            for event in items.close("incomplete" if is_cut else "completed"):
                yield numbered(event)
            end = "response.incomplete" if is_cut else "response.completed"
            texts = [part["text"] for item in items.done if item["type"] == "reasoning" for part in item["content"]]
            thought = len(await service.encode("".join(texts), special=False)) if texts else 0
            yield numbered({"type": end, "response": _response(body, ask, items.done, piece.reply, thought)})


def event(data: dict[str, Any]) -> bytes:
    """One event of a stream, with its name."""
    return f"event: {data['type']}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
