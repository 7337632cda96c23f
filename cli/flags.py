"""Flags from config structs: a field is a flag in kebab-case, its type is the check, its docstring is the help.

Sources, later wins: defaults, recipes left to right (`@ file.toml`), flags. All faults are reported at once, each with
where it was said.
"""

import typing
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from postmill.cli.help import flag_name
from postmill.io.errors import ConfigError
from postmill.stages.options import bare, build, explain_unknown, options, short_names
from postmill.stages.tables import closest

WIRES = ("model", "data", "output")
"""What may stand at the top of a recipe of several stages, outside of all sections."""


class Given(msgspec.Struct, frozen=True):
    """A value with the place it was given at: `--lr` or `sft.toml:3: lr`. Text from a flag is still to be converted."""

    value: Any
    place: str
    from_flag: bool


def from_text(text: str, kind: Any) -> Any:
    """What the text of a flag stands for, as far as its type tells: numbers are left to msgspec to judge."""
    plain = bare(kind)
    if plain is str or typing.get_origin(plain) is typing.Literal:
        return text
    if typing.get_origin(plain) is dict or plain is dict:
        return _members(text, typing.get_args(plain)[1:] == (str,))
    if typing.get_origin(plain) in (list, tuple):
        return _items(text, typing.get_args(plain)[0])
    if plain is float and text.endswith("%"):
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
    if bare(kind) not in (int, float):
        return [text]
    return [item.strip() for item in text.strip().removeprefix("[").removesuffix("]").split(",")]


def chosen_names(config: type[Any], said: dict[str, list[Given]]) -> dict[str, str]:
    """The name said at each choice: path -> name."""
    names = short_names({path: option for path, option in options(config).items() if option.choice is not None})
    return {path: str(flags_last(said[name])[-1].value) for name, path in names.items() if said.get(name)}


def flags_last(givens: list[Given]) -> list[Given]:
    """What was said of an option, recipes before flags wherever they stood: the last one counts."""
    return sorted(givens, key=lambda one: one.from_flag)


def resolve(config: type[Any], said: dict[str, list[Given]], command: str) -> Any:
    """The config from everything that was said. Raises ConfigError (2) listing every fault, one a line."""
    chosen = chosen_names(config, said)
    known = options(config, chosen)
    names = short_names(known)
    faults: list[str] = []
    values: dict[str, Any] = {}
    by_path: dict[str, list[Given]] = {}
    for name, givens in said.items():
        by_path.setdefault(names.get(name, name), []).extend(givens)
    for path, givens in by_path.items():
        if path not in known:
            faults.append(f"{givens[-1].place}: {explain_unknown(path, command, config, known)}")
        elif known[path].choice is None:
            value = _one_value(known[path].kind, flags_last(givens), faults)
            if value is not msgspec.UNSET:
                values[path] = value
    for path, option in known.items():
        if option.default is msgspec.NODEFAULT and path not in by_path:
            faults.append(f"{command}: {flag_name(path)} is required")
    if faults:
        raise ConfigError("\n".join(faults))
    try:
        return build(config, values, chosen)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{command}: {_in_flags(str(error))}") from error


def _one_value(kind: Any, givens: list[Given], faults: list[str]) -> Any:
    """The value of one field: the last one said; flags of a list or a table add up. Faults are appended."""
    flags = [given for given in givens if given.from_flag]
    origin = typing.get_origin(bare(kind))
    try:
        if flags and origin in (list, tuple):
            value: Any = [item for given in flags for item in from_text(given.value, kind)]
        elif flags and origin is dict:
            value = {key: item for given in flags for key, item in from_text(given.value, kind).items()}
        else:
            last = givens[-1]
            value = from_text(last.value, kind) if last.from_flag else last.value
        return msgspec.convert(value, kind, strict=not flags)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        shown = givens[-1].value
        faults.append(f"{givens[-1].place}: {shown!r}: {_expected(kind, shown) or _in_flags(str(error))}")
        return msgspec.UNSET


def _expected(kind: Any, shown: Any) -> str:
    """What a value must be, where its type says more than msgspec's message does."""
    plain = bare(kind)
    if typing.get_origin(plain) is typing.Literal:
        names = [str(name) for name in typing.get_args(plain)]
        return f"expected one of {', '.join(names)}{closest(str(shown), names)}"
    is_word = isinstance(shown, str) and not shown.lstrip("+-").replace(".", "", 1).isdecimal()
    return {int: "expected a whole number", float: "expected a number"}.get(plain, "") if is_word else ""


def _in_flags(message: str) -> str:
    """msgspec's message with the path as people write it, in lower case."""
    text, _, path = message.partition(" - at `$")
    text = text[:1].lower() + text[1:]
    path = path.strip("`.")
    return f"{text} (at {path})" if path else text


def read_recipe(path: Path, command: str, stages: Collection[str], config: type[Any]) -> dict[str, list[Given]]:
    """What a TOML, YAML 1.2 or JSON recipe says to one command: option -> value.

    A table named after a stage holds that stage's options only; a table in it is a group or a choice's options.
    Raises ConfigError (2) when the recipe cannot be read, naming the line.
    """
    root = parse_recipe(path)
    section = root.get(command, root)
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {command} is a {type(section).__name__}, expected a table")
    if section is root:
        section = {key: value for key, value in root.items() if key not in stages and not _of_a_chain(key, value)}
    said: dict[str, list[Given]] = {}
    for name, item in _leaves(section, _free_tables(config)):
        said[name.replace("-", "_")] = [Given(item, f"{path}{line_of(path, name.rpartition('.')[2])}: {name}", False)]
    return said


def _of_a_chain(key: str, value: Any) -> bool:
    """Whether an entry of a recipe is for `postmill run`: a name at its top, or a section called as no stage is."""
    return key in WIRES or (isinstance(value, dict) and "stage" in value)


def _free_tables(config: type[Any]) -> set[str]:
    """Options whose value is a table itself."""
    return {
        path
        for path, option in options(config).items()
        if typing.get_origin(bare(option.kind)) is dict or bare(option.kind) is dict
    }


def _leaves(table: dict[str, Any], free: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = prefix + key
        if isinstance(value, dict) and name.replace("-", "_") not in free:
            yield from _leaves(value, free, f"{name}.")
        else:
            yield name, value


def parse_recipe(path: Path) -> dict[str, Any]:
    """A TOML, YAML 1.2 or JSON recipe as it is written. Raises ConfigError (2)."""
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


def line_of(path: Path, key: str) -> str:
    """`:LINE` where `key` is set in a recipe, if it can be told."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        word = line.strip().lstrip("\"'{")
        if word.startswith(key) and word[len(key) :].lstrip("\"' ")[:1] in ("=", ":"):
            return f":{number}"
    return ""
