"""What the form says, as a command, as a recipe and as fields: the page never does what cannot be typed.

The fields are read from the stages' declarations, as `--help` is. Whatever is chosen becomes `postmill run RECIPE ...
--set SECTION.OPTION=VALUE`, checked by the same code as the command.
"""

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.chain import find_recipe, read_steps
from postmill.cli.coming_from.write import toml_key, toml_value
from postmill.cli.declaration import REQUIRED, Declaration, read_declaration
from postmill.cli.flags import parse_recipe, read_recipe
from postmill.cli.page.guard import Refused
from postmill.cli.page.places import Folder
from postmill.io.errors import ConfigError
from postmill.stages.options import options, short_names
from postmill.stages.table import STAGES


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """What was filled in. `settings`: `section.option` -> value, only what differs from the recipe."""

    recipe: str
    data: str = ""
    model: str = ""
    output: str = "out"
    settings: dict[str, str] = {}


class Planned(msgspec.Struct):
    """A recipe with what was filled in."""

    argv: list[str]
    """The command without `postmill`."""
    commands: list[str]
    """What it runs, stage by stage; empty where there are faults."""
    faults: list[str]
    recipe: str
    sections: list[dict[str, Any]]


def read(ask: Ask, folder: Folder) -> Planned:
    """Raises Refused (400, 403) for a recipe that is none, or a path outside of the folder."""
    path = _recipe(ask.recipe, folder)
    root = _root(path)
    argv = ["loop" if "loop" in root else "run", ask.recipe]
    for value in ask.settings.values():
        folder.value(value)
    folder.path(ask.output)
    if ask.data:
        argv.append(folder.data(ask.data))
    if ask.model:
        argv += ["-m", folder.model(ask.model)]
    argv += ["-o", ask.output, *(word for key, value in ask.settings.items() for word in ("--set", f"{key}={value}"))]
    commands, faults = _commands(path, settings_of(ask), ask.output, root)
    return Planned(argv, commands, faults, _toml(ask, root), _sections(path, root, ask.settings))


def settings_of(ask: Ask) -> dict[str, list[str]]:
    """What was filled in, as `read_steps` has it."""
    top = {"data": ask.data, "model": ask.model}
    return {key: [value] for key, value in (ask.settings | top).items() if value}


def _recipe(name: str, folder: Folder) -> Path:
    try:
        if Path(name).suffix or "/" in name:
            folder.path(name)
        return find_recipe(name)
    except ConfigError as error:
        raise Refused(400, str(error)) from None


def _root(path: Path) -> dict[str, Any]:
    try:
        return parse_recipe(path)
    except ConfigError as error:
        raise Refused(400, str(error)) from None


def _commands(
    path: Path, settings: dict[str, list[str]], output: str, root: dict[str, Any]
) -> tuple[list[str], list[str]]:
    besides = ("loop",) if "loop" in root else ()
    try:
        steps = read_steps(path, settings, Path(output), besides=besides)
    except ConfigError as error:
        return [], str(error).split("\n")
    return [shlex.join(["postmill", *step.argv]) for step in steps], []


def _config(stage: str) -> type[Any]:
    config: type[Any] = importlib.import_module(f"postmill.stages.{stage}.config").STAGE.config
    return config


def _toml(ask: Ask, root: dict[str, Any]) -> str:
    """The recipe with all that was filled in, as a file of its own."""
    top = {key: value for key, value in root.items() if not isinstance(value, dict)}
    top |= {key: value for key, value in (("model", ask.model), ("data", ask.data), ("output", ask.output)) if value}
    tables = {name: dict(value) for name, value in root.items() if isinstance(value, dict)}
    for key, value in ask.settings.items():
        section, _, option = key.partition(".")
        if section in tables and option:
            tables[section] = {
                name: item for name, item in tables[section].items() if name.replace("-", "_") != option
            } | {option: value}
    lines = [f"{toml_key(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in top.items()]
    for name, table in tables.items():
        own = {key for key in table if f"{name}.{key}" in ask.settings}
        lines += ["", f"[{name}]"]
        for key, value in table.items():
            # what was typed is a number if it looks like one; what the recipe says is what it is
            is_text = isinstance(value, str) and key not in own
            lines.append(f"{toml_key(key)} = {json.dumps(value, ensure_ascii=False) if is_text else toml_value(value)}")
    return "\n".join(lines).strip() + "\n"


def _sections(path: Path, root: dict[str, Any], settings: dict[str, str]) -> list[dict[str, Any]]:
    """The fields of each section: its options with what they are and what the recipe says."""
    sections = []
    for name, table in root.items():
        stage = table.get("stage", name) if isinstance(table, dict) else ""
        if stage not in STAGES:
            continue
        said = {key: one[-1].value for key, one in read_recipe(path, name, STAGES, _config(stage)).items()}
        own = {key.partition(".")[2]: value for key, value in settings.items() if key.partition(".")[0] == name}
        sections.append({"name": name, "stage": stage, **_fields(stage, said, own)})
    return sections


def _fields(stage: str, said: dict[str, Any], own: dict[str, str]) -> dict[str, Any]:
    """`chosen`: which form of the options this is; a form of another choice has other fields."""
    both = {**said, **own}
    base = read_declaration(stage)
    argv = [word for path in base.choices if path in both for word in (f"--{path.replace('_', '-')}", str(both[path]))]
    try:
        declared = read_declaration(stage, argv)
    except ConfigError:
        declared = base
    names = short_names(options(_config(stage), dict(declared.chosen)))
    values = {names.get(key, key): value for key, value in said.items()}
    picked = set(declared.chosen.values())
    fields = [_field(declared, option, values, picked) for option in declared.options]
    return {"chosen": sorted(picked), "fields": fields}


def _field(declared: Declaration, option: Any, values: dict[str, Any], picked: set[str]) -> dict[str, Any]:
    is_first = option.path in declared.first or option.path in values or option.path.partition(".")[0] in picked
    default = None if option.default is REQUIRED else option.default
    return {
        "path": option.path,
        "kind": "choice" if option.path in declared.choices else option.kind,
        "names": declared.choices.get(option.path) or (option.kind.split("|") if "|" in option.kind else []),
        "default": _typed(default),
        "value": _shown(values.get(option.path)),
        "doc": option.doc,
        "first": is_first,
    }


def _typed(default: Any) -> Any:
    """A default as people would type it."""
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default))
    return _shown(default) if default or not isinstance(default, dict) else ""


def _shown(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else msgspec.json.encode(value).decode()
