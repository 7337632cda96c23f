"""Calls that have to come, or have to fit their tool's schema: as a grammar of the model's own way of writing calls.

`tool_choice` required, or of one tool, makes the answer one call. `strict` lets the model choose, and holds each call
that it begins to the schemas. Agent formats that can say how a call is written have `forced` in their file: what stands
before a call, the name of its arguments, and what stands after.
"""

import json
from typing import Any

from postmill.stages.serve.errors import ApiError, invalid, unsupported
from postmill.stages.serve.service import Service
from postmill.stages.shared.agent_formats.table import load_format
from postmill.stages.shared.engine.protocol import Constraint

Tools = list[dict[str, Any]]


def read_tool_choice(choice: str | dict[str, Any] | None, tools: Tools | None) -> Tools:
    """The tools of which one has to be called; none where the model may choose. Raises ApiError (400)."""
    if choice is None or choice in ("auto", "none"):
        return []
    named = choice.get("function", choice) if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if choice != "required" and not (isinstance(choice, dict) and choice.get("type") == "function"):
        raise invalid("tool_choice", "tool_choice: expected auto, none, required, or a function by name.")
    if not tools:
        raise invalid("tool_choice", "tool_choice: there are no tools to choose from.")
    allowed = tools if choice == "required" else [tool for tool in tools if tool["function"]["name"] == name]
    if not allowed:
        raise invalid("tool_choice", f"tool_choice: {name!r} is none of the tools.")
    return allowed


def tool_constraint(service: Service, wanted: Tools, tools: Tools | None) -> tuple[Constraint, str] | None:
    """The grammar that calls have to follow, and the field that asks for it; None where any text will do.

    Raises ApiError (400) for a format of calls that no grammar is known for.
    """
    is_strict = any(tool["function"].get("strict") for tool in tools or [])
    if not wanted and not is_strict:
        return None
    param = "tool_choice" if wanted else "tools"
    rule = load_format(service.agent_format)["read"].get("forced") if service.agent_format else None
    if rule is None:
        name = service.agent_format or "none"
        raise unsupported(param, f"{param}: calls in this model's format, {name}, cannot be forced; leave it to auto.")
    before, arguments, after = rule
    calls = wanted or tools or []
    if not wanted and not before.strip():
        raise unsupported(param, f"{param}: strict calls need a mark before them, which this model does not write.")
    return Constraint(kind="grammar", source=_grammar(service, (before, arguments, after), calls, not wanted)), param


def _grammar(service: Service, rule: tuple[str, str, str], calls: Tools, is_free: bool) -> str:
    """In Lark's notation; is_free: calls may stand anywhere in a text, and none has to."""
    before, arguments, after = rule
    mark = before.strip()
    token = service.speaker.special_token(mark)
    opening = json.dumps(mark) if token is None else f"<[{token}]>"
    rest = before[before.index(mark) + len(mark) :]
    names = " | ".join(f"call{number}" for number in range(len(calls)))
    body = " ".join([*([json.dumps(rest)] if rest else []), f"({names})", *([json.dumps(after)] if after else [])])
    if not is_free:
        lines = [f"start: {opening} {body}" if mark else f"start: {body}"]
    elif token is None:
        lines = ["start: tag* TEXT", "TEXT: /(.|\\n)*/", f"mark[lazy]: TEXT {opening}", f"tag: mark {body}"]
    else:
        lines = ["start: tag* TEXT", "TEXT: /(.|\\n)*/", f"tag: TEXT {opening} {body}"]
    for number, tool in enumerate(calls):
        function = tool["function"]
        head = json.dumps(f'{{"name": {json.dumps(function["name"])}, "{arguments}": ')
        lines += [f'call{number}: {head} arguments{number} "}}"', f"arguments{number}: %json {_schema(function)}"]
    return "\n".join(lines)


def _schema(function: dict[str, Any]) -> str:
    """Of the arguments. Only a strict tool's words have to be understood, all of them."""
    is_strict = bool(function.get("strict"))
    rules = {"whitespace_pattern": r"[ \t\n]{1,20}", "lenient": not is_strict}
    schema = {"type": "object"} | (function.get("parameters") or {})
    if schema["type"] != "object":
        raise ApiError(400, "invalid_schema", f"The parameters of {function['name']!r} are no object.", "tools")
    return json.dumps(schema | {"x-guidance": rules})
