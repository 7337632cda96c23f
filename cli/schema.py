"""`postmill schema`: JSON Schema of a stage's options, for editors of recipes."""

import importlib
import sys

import msgspec

from postmill.cli.tool import need, parse
from postmill.io.errors import ConfigError
from postmill.stages.options import json_schema
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
    sections = {
        name: json_schema(importlib.import_module(f"postmill.stages.{name}.config").STAGE.config)
        for name in args.words or STAGES
    }
    schema = sections[args.words[0]] if args.words else {"type": "object", "properties": sections}
    text = msgspec.json.encode({"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema)
    sys.stdout.write(msgspec.json.format(text).decode() + "\n")
    return 0
