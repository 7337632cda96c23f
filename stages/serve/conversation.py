"""Messages as clients send them, to messages as chat templates read them."""

import json
import re
from typing import Any

from postmill.stages.serve import media
from postmill.stages.serve.errors import ApiError, unsupported

_ROLES = {"system", "developer", "user", "assistant", "tool"}
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read_messages(messages: list[dict[str, Any]], *, pictures: bool = False) -> list[dict[str, Any]]:
    """Checked, with parts of text joined and arguments of calls as objects. Raises ApiError (400).

    pictures: whether the model reads them. A content with a picture or a sound stays a list of parts, see
    `stages/serve/media.py`.
    """
    read: list[dict[str, Any]] = []
    calls: set[str] = set()
    for number, message in enumerate(messages):
        place = f"messages.{number}"
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise _wrong(f"{place}.role", f"{role!r} is none of {', '.join(sorted(_ROLES))}")
        read_message = dict(message)
        content, at = message.get("content"), f"{place}.content"
        read_message["content"] = _content(
            content, at, optional=role == "assistant", pictures=pictures and role == "user"
        )
        if role == "assistant":
            read_message |= _reasoning(message, place)
            if message.get("tool_calls") is not None:
                read_message["tool_calls"] = _calls(message["tool_calls"], f"{place}.tool_calls")
                calls |= {call["id"] for call in read_message["tool_calls"] if "id" in call}
        if role == "tool":
            name = message.get("tool_call_id")
            if not isinstance(name, str) or name not in calls:
                raise _wrong(f"{place}.tool_call_id", f"{name!r} is the id of no call before it")
        read.append(read_message)
    return read


def _wrong(param: str, what: str) -> ApiError:
    return ApiError(400, "invalid_messages", f"{param}: {what}.", param)


def _content(content: Any, place: str, *, optional: bool, pictures: bool) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, list):
        raise _wrong(place, f"expected text or a list of parts, got {type(content).__name__}")
    parts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if pictures and kind in media.KINDS:
            read = media.read_sound if kind == "input_audio" else media.read_picture
            parts.append(read(part, f"{place}.{number}"))
            continue
        if kind in ("file", "video_url", *media.KINDS):
            reads = "text, and pictures or sounds in messages of the user" if pictures else "text only"
            raise unsupported(f"{place}.{number}", f"{place}.{number}: this model reads {reads}, not {kind}.")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _wrong(f"{place}.{number}", "expected a part of type text")
        parts.append({"type": "text", "text": part["text"]})
    if any(part["type"] != "text" for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _reasoning(message: dict[str, Any], place: str) -> dict[str, str]:
    """Reasoning under both of its names, as templates read one or the other."""
    said = message.get("reasoning_content", message.get("reasoning"))
    if said is None:
        return {}
    if not isinstance(said, str):
        raise _wrong(f"{place}.reasoning_content", "expected text")
    return {"reasoning_content": said, "reasoning": said}


def _calls(calls: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise _wrong(place, "expected a list")
    read = []
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _wrong(f"{place}.{number}", "expected a function with a name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments) if arguments.strip() else {}
            except (ValueError, RecursionError):
                raise _wrong(f"{place}.{number}.function.arguments", "the text is not JSON") from None
        if not isinstance(arguments, dict):
            raise _wrong(f"{place}.{number}.function.arguments", "expected an object")
        read.append(call | {"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return read


def read_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Checked. Raises ApiError (400)."""
    for number, tool in enumerate(tools or []):
        place = f"tools.{number}"
        if tool.get("type") != "function":
            raise unsupported(f"{place}.type", f"{place}.type: {tool.get('type')!r}: only functions are served.")
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ApiError(
                400,
                "invalid_tool",
                f"{place}.function.name: {name!r}: expected 1 to 64 of A-Z a-z 0-9 _ -.",
                f"{place}.function.name",
            )
        assert isinstance(function, dict)
        schema = function.get("parameters")
        if schema is not None and not isinstance(schema, dict):
            raise ApiError(
                400,
                "invalid_schema",
                f"{place}.function.parameters: expected a JSON Schema.",
                f"{place}.function.parameters",
            )
    return tools or None
