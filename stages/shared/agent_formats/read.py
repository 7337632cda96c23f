"""The way back of an agent format: the calls in a text that a model wrote.

`read_calls` reads a whole text. In a text that the same format wrote it finds the calls that were written, with their
types where the tools' schemas give them: many formats write the text `5` and the number 5 alike.
"""

import ast
import html
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from postmill.stages.shared.agent_formats.table import load_format

Call = dict[str, Any]
"""`name` and `arguments`."""


def read_calls(name: str, text: str, tools: list[dict[str, Any]] | None = None) -> tuple[str, list[Call]]:
    """What a text says before its first call, and the calls in it, in order.

    name: of a format. tools: schemas in the form `{type, function}`, which settle what is a text and what is JSON.
    A call whose arguments cannot be read is left out, and stays in the text if it is the first.
    """
    rule = load_format(name)["read"]
    schemas = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools or []}
    calls: list[Call] = []
    first = len(text)
    for start, body in _blocks(rule, text):
        for match in find_calls(rule, body):
            call = _call(rule, match.groups, schemas)
            if call is not None:
                calls.append(call)
                first = min(first, start + (0 if "block" in rule else _start(rule, match, call["name"])))
    return text[:first], calls


class Match(NamedTuple):
    """A stretch of text that may be a call."""

    start: int
    end: int
    groups: dict[str, str | None]
    """As the format's pattern names them."""


def find_calls(rule: dict[str, Any], text: str) -> Iterator[Match]:
    """The stretches that look like calls.

    With `object` in the rule, the pattern says where a JSON object with such a member may start, and the object says
    where it ends: no pattern counts braces.
    """
    pattern = re.compile(rule["call"], re.DOTALL)
    at = 0
    while match := pattern.search(text, at):
        start, at, groups = match.start(), max(match.end(), match.start() + 1), match.groupdict()
        if "object" in rule:
            try:
                call, end = json.JSONDecoder().raw_decode(text, start)
            except (ValueError, RecursionError):
                at = start + 1
                continue
            if rule["object"] not in call:
                continue
            at, groups = end, {"call": text[start:end]}
        yield Match(start, at, groups)


def _start(rule: dict[str, Any], match: Match, name: str) -> int:
    """Where a call starts; that is in front of its name where text may be glued to it."""
    return match.start + ((match.groups["name"] or "").rindex(name) if rule.get("glued") else 0)


def _blocks(rule: dict[str, Any], text: str) -> Iterator[tuple[int, str]]:
    """The stretches in which calls may stand, and where they start."""
    if "block" not in rule:
        yield 0, text
        return
    for match in re.finditer(rule["block"], text, re.DOTALL):
        yield match.start(), match["calls"]


def _properties(function: dict[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    return properties if isinstance(properties, dict) else {}


def _call(rule: dict[str, Any], groups: dict[str, str | None], schemas: dict[str, dict[str, Any]]) -> Call | None:
    whole = groups.get("call")
    if whole is not None:
        return _whole(whole)
    name, body = (groups["name"] or "").strip(), groups["arguments"] or ""
    if rule.get("glued") and name not in schemas:
        name = max((known for known in schemas if name.endswith(known)), key=len, default=name)
    name = html.unescape(name) if rule.get("entities") else name
    schema = schemas.get(name, {})
    if "pair" in rule:
        return {"name": name, "arguments": _pairs(rule, body, schema)}
    match rule.get("arguments", "json"):
        case "elements":
            elements = _elements(body, rule["mark"], schema)
            return {"name": name, "arguments": elements if isinstance(elements, dict) else {}}
        case "python":
            arguments = _literal(body)
        case "gemma":
            arguments = _gemma(body)
        case _:
            arguments = _json(body)
    return {"name": name, "arguments": arguments} if isinstance(arguments, dict) else None


def _whole(text: str) -> Call | None:
    """A call that is one JSON object."""
    decoded = _json(text)
    if not isinstance(decoded, dict) or not isinstance(decoded.get("name"), str):
        return None
    arguments = decoded.get("arguments", decoded.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments)
    return {"name": decoded["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _literal(text: str) -> Any:
    """JSON, or a literal of Python, as models write that learned from printed dicts."""
    decoded = _json(text)
    if decoded is None:
        try:
            decoded = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return decoded


def _pairs(rule: dict[str, Any], body: str, schema: dict[str, Any]) -> dict[str, Any]:
    arguments = {}
    for match in re.finditer(rule["pair"], body, re.DOTALL):
        groups = match.groupdict()
        key = html.unescape(groups["key"]) if rule.get("entities") else groups["key"].strip()
        if groups.get("text") is not None:
            arguments[key] = groups["text"]
        elif groups.get("type") is not None:
            text = groups["type"] in rule["texts"]
            arguments[key] = groups["value"] if text else _typed(groups["value"], {})
        else:
            arguments[key] = _typed(groups["value"], schema.get(key))
    return arguments


def _typed(text: str, schema: Any) -> Any:
    """A value whose text does not say its type: that of the schema, or what reads as JSON."""
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and not ("null" in kinds and text.strip() == "null"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _elements(body: str, mark: str, schema: Any) -> Any:
    """Nested elements, each tag behind a mark."""
    if not body.strip().startswith(mark):
        kind = schema.get("type") if isinstance(schema, dict) else None
        if not body and kind in ("array", "object"):
            return [] if kind == "array" else {}
        return _typed(body, schema)
    properties = schema if isinstance(schema, dict) else {}
    if "properties" in properties:
        properties = properties["properties"]
    arguments: dict[str, Any] = {}
    items = []
    at = 0
    opening = re.compile(re.escape(mark) + r"<([^/>]+)>")
    while match := opening.search(body, at):
        key, depth, scan = match[1], 1, match.end()
        tag = re.compile(re.escape(mark) + rf"<(/?){re.escape(key)}>")
        while depth and (end := tag.search(body, scan)):
            depth += -1 if end[1] else 1
            scan = end.end()
        if depth:
            break
        inner = body[match.end() : end.start()]  # type: ignore[union-attr]
        if key == "item":
            items.append(_elements(inner, mark, (schema or {}).get("items")))
        else:
            arguments[key] = _elements(inner, mark, properties.get(key))
        at = scan
    return items if items else arguments


def _gemma(body: str) -> Any:
    """Gemma's notation: JSON whose keys are bare and whose quotes are `<|"|>`."""
    quoted = re.split(r'<\|"\|>', body)
    parts = []
    for index, part in enumerate(quoted):
        # every second part is a text
        parts.append(json.dumps(part) if index % 2 else re.sub(r"[^{}\[\],:]+(?=:)", _quoted, part))
    return _json("".join(parts))


def _quoted(key: re.Match[str]) -> str:
    return json.dumps(key[0].strip())
