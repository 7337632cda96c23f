"""Flags from config structs: a field is a flag in kebab-case, its type is the check, its docstring is the help.

Sources, later wins: defaults, recipes left to right (`@ file.toml`), flags. All faults are reported at once, each with
where it was said.
"""

import difflib
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.help import flag_name
from postmill.io.errors import ConfigError


class Said(msgspec.Struct, frozen=True):
    """A value with the place it was given at: `--lr` or `sft.toml:3: lr`. Text from a flag is still to be converted."""

    value: Any
    place: str
    from_flag: bool


def closest(word: str, known: list[str]) -> str:
    """`; did you mean X?` for the known word nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def field_of(word: str, fields: Collection[str]) -> str:
    """The field that people call `word`: `row-tokens` is `row_tokens`, `for` is `for_`."""
    name = word.replace("-", "_")
    return f"{name}_" if name not in fields and f"{name}_" in fields else name


def strip_optional(kind: Any) -> Any:
    """`T` for `Annotated[T, ...]`, `T | None` and both."""
    if typing.get_origin(kind) is typing.Annotated:
        return strip_optional(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        some = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return strip_optional(some[0]) if len(some) == 1 else kind
    return kind


def is_nested(kind: Any) -> bool:
    bare = strip_optional(kind)
    return isinstance(bare, type) and issubclass(bare, msgspec.Struct)


def config_fields(config: type[Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Field path -> (type, default) of a struct, one nested level deep (`adapter.rank`); NODEFAULT if required."""
    hints = typing.get_type_hints(config, include_extras=True)
    fields: dict[str, tuple[Any, Any]] = {}
    for field in msgspec.structs.fields(config):
        kind = hints[field.name]
        if is_nested(kind):
            fields |= config_fields(strip_optional(kind), f"{field.name}.")
            continue
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        fields[prefix + field.name] = (kind, default)
    return fields


def from_text(text: str, kind: Any) -> Any:
    """What the text of a flag stands for, as far as its type tells: numbers are left to msgspec to judge."""
    bare = strip_optional(kind)
    if bare is str or typing.get_origin(bare) is typing.Literal:
        return text
    if typing.get_origin(bare) is dict or bare is dict:
        return _members(text, typing.get_args(bare)[1:] == (str,))
    if typing.get_origin(bare) in (list, tuple):
        return _items(text, typing.get_args(bare)[0])
    if bare is float and text.endswith("%"):
        return float(text[:-1]) / 100
    return text


def _members(text: str, are_texts: bool) -> dict[str, Any]:
    """`key=value`, or an object as JSON. Unless values are texts, one that is JSON is read so (`thinking=false`)."""
    if text.lstrip().startswith("{"):
        decoded: dict[str, Any] = msgspec.json.decode(text.encode())
        return decoded
    key, is_pair, value = text.partition("=")
    if not key or not is_pair:
        raise ValueError("expected key=value, or an object as JSON")
    try:
        return {key: value if are_texts else msgspec.json.decode(value.encode())}
    except msgspec.DecodeError:
        return {key: value}


def _items(text: str, kind: Any) -> list[Any]:
    """`0.7,0.3` or `[0.7, 0.3]` for numbers; text is one item as it is, since it may hold commas and brackets."""
    if strip_optional(kind) not in (int, float):
        return [text]
    return [item.strip() for item in text.strip().removeprefix("[").removesuffix("]").split(",")]


def resolve(config: type[Any], said: dict[str, list[Said]], command: str) -> Any:
    """The config from everything that was said. Raises ConfigError (2) listing every fault, one a line."""
    fields = config_fields(config)
    faults: list[str] = []
    values: dict[str, Any] = {}
    for path, givens in said.items():
        if path not in fields:
            faults.append(f"{givens[-1].place}: no such option of {command}{closest(path, list(fields))}")
            continue
        value = _one_value(path, fields[path][0], givens, faults)
        if value is not msgspec.UNSET:
            values[path] = value
    for path, (_, default) in fields.items():
        if default is msgspec.NODEFAULT and path not in said:
            faults.append(f"{command}: {flag_name(path)} is required")
    if faults:
        raise ConfigError("\n".join(faults))
    nested: dict[str, Any] = {}
    for path, value in values.items():
        head, _, tail = path.partition(".")
        if tail:
            nested.setdefault(head, {})[tail] = value
        else:
            nested[head] = value
    try:
        return msgspec.convert(nested, config, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{command}: {_in_flags(str(error))}") from error


def _one_value(path: str, kind: Any, givens: list[Said], faults: list[str]) -> Any:
    """The value of one field: the last one said; flags of a list or a table add up. Faults are appended."""
    flags = [given for given in givens if given.from_flag]
    origin = typing.get_origin(strip_optional(kind))
    try:
        if flags and origin in (list, tuple):
            value: Any = [item for given in flags for item in from_text(given.value, kind)]
        elif flags and origin is dict:
            value = {key: item for given in flags for key, item in from_text(given.value, kind).items()}
        else:
            last = givens[-1]
            value = from_text(last.value, kind) if last.from_flag else last.value
        return msgspec.to_builtins(msgspec.convert(value, kind, strict=not flags))
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        shown = givens[-1].value
        faults.append(f"{givens[-1].place}: {shown!r}: {_in_flags(str(error))}")
        return msgspec.UNSET


def _in_flags(message: str) -> str:
    """msgspec's message with the path as people write it, in lower case."""
    text, _, path = message.partition(" - at `$")
    text = text[:1].lower() + text[1:]
    path = path.strip("`.")
    return f"{text} (at {path})" if path else text


def read_recipe(path: Path, command: str, fields: Collection[str]) -> dict[str, list[Said]]:
    """Fields of a TOML, YAML 1.2 or JSON recipe. A table named after the command holds that command's fields only.

    `fields` are the command's field paths; a table that is no field itself is taken for a nested struct.
    Raises ConfigError (2) when it cannot be read, naming the line.
    """
    root = _parse_recipe(path)
    section = root.get(command, root)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {command} is a {type(section).__name__}, expected a table")
    if section is root:
        stages = {"tokenize", "pack", "train", "score", "rollout", "reward", "merge", "quantize", "serve", "eval"}
        section = {key: value for key, value in root.items() if key not in stages}
    said: dict[str, list[Said]] = {}
    for key, value in section.items():
        nested = isinstance(value, dict) and key.replace("-", "_") not in fields
        items = {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value}
        for name, item in items.items():
            field = field_of(name, fields)
            said[field] = [Said(item, f"{path}{_line_of(path, name.rpartition('.')[2])}: {name}", False)]
    return said


def _parse_recipe(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        raw = path.read_bytes()
        if path.suffix == ".toml":
            return tomllib.loads(raw.decode())
        if path.suffix in (".yaml", ".yml"):
            from ruamel.yaml import YAML
            from ruamel.yaml.error import YAMLError

            try:
                value = YAML(typ="safe", pure=True).load(raw.decode())
            except YAMLError as error:
                raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
            return value if isinstance(value, dict) else {}
        value = msgspec.json.decode(raw)
        return value if isinstance(value, dict) else {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a recipe that exists") from error
    except (tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _line_of(path: Path, key: str) -> str:
    """`:LINE` where `key` is set in a recipe, if it can be told."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        word = line.strip().lstrip("\"'{")
        if word.startswith(key) and word[len(key) :].lstrip("\"' ")[:1] in ("=", ":"):
            return f":{number}"
    return ""
