"""`postmill schema`: JSON Schema of a stage's options, for editors of recipes."""

import importlib
import sys
from typing import Any

import msgspec

from postmill.cli.loop import Loop
from postmill.cli.tool import need, parse
from postmill.io.errors import ConfigError
from postmill.stages.options import json_schema
from postmill.stages.spec import Stage
from postmill.stages.table import STAGES
from postmill.stages.tables import closest

USAGE = """
Print the JSON Schema of a stage's options, or of a recipe with a table for each stage.

usage: postmill schema [STAGE]
"""


def run(argv: list[str]) -> int:
    """Print one schema."""
    args = parse(argv, USAGE)
    if args is None:
        return 0
    need(args, 0, 1, USAGE)
    for name in args.words:
        if name not in STAGES:
            raise ConfigError(f"{name}: no such stage{closest(name, list(STAGES))}")
    declared = {name: importlib.import_module(f"postmill.stages.{name}.config").STAGE for name in args.words or STAGES}
    schema = json_schema(declared[args.words[0]].config) if args.words else recipe_schema(declared)
    text = msgspec.json.encode({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema)
    sys.stdout.write(msgspec.json.format(text).decode() + "\n")
    return 0


_TEXTS = {"type": ["string", "array"], "items": {"type": "string"}}


def recipe_schema(declared: dict[str, Stage]) -> dict[str, Any]:
    """JSON Schema of a whole recipe: what stands at its top, and a table for each section.

    A section of another name says its stage; it is checked as a section of that stage is.
    """
    parts = {name: _section(stage) for name, stage in declared.items()} | {"loop": json_schema(Loop)}
    at_the_top = {
        "model": _TEXTS | {"description": "The model, for every section that needs one: a folder, or owner/name."},
        "data": _TEXTS | {"description": "The data, for every section that needs some."},
        "output": {"type": "string", "description": "Where outputs go, as -o says."},
    }
    other = [
        {"if": {"properties": {"stage": {"const": name}}}, "then": {"$ref": f"#/$defs/{name}"}} for name in declared
    ]
    return {
        "type": "object",
        "title": "A recipe of postmill",
        "properties": at_the_top | {name: {"$ref": f"#/$defs/{name}"} for name in parts},
        "additionalProperties": {
            "type": "object",
            "required": ["stage"],
            "properties": {"stage": {"enum": list(declared)}},
            "allOf": other,
        },
        "$defs": parts,
    }


def _section(stage: Stage) -> dict[str, Any]:
    """A section of a stage: its options by their paths and last parts, with dashes or underscores, and its inputs."""
    schema = json_schema(stage.config)
    members: dict[str, Any] = {name: _TEXTS | {"description": port.help} for name, port in stage.inputs.items()}
    members["stage"] = {"const": stage.name, "description": "The stage, where the section has a name of its own."}
    if stage.ranks:
        members["ranks"] = {"type": "integer", "minimum": 1, "description": "How many processes run it together."}
    properties = _with_short_names(schema["properties"]) | members
    dashed = {name.replace("_", "-"): value for name, value in properties.items()}
    return schema | {"properties": dashed | properties}


def _with_short_names(properties: dict[str, Any]) -> dict[str, Any]:
    """Options in tables also by their last part alone, where a choice has only one of that name."""
    tables = [value for value in properties.values() if value.get("type") == "object" and "properties" in value]
    inner: dict[str, Any] = {}
    for table in tables:
        for name, value in table["properties"].items():
            inner.setdefault(name, []).append(value)
    short = {name: schemas[0] if len(schemas) == 1 else {"anyOf": schemas} for name, schemas in inner.items()}
    return short | properties
