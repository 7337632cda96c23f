"""The one walk over a config struct: its options with path, type, default and effect; values to and from plain data.

A field is an option, a group (a struct of options: `batch.micro_bins`), or a choice (a struct out of a table:
`--tuner lora`, whose options are `lora.rank`). A path is what flags, recipes and help say. A last part that only one
option has is a name of its own: `--rank`.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from postmill.io.errors import ConfigError
from postmill.stages.spec import Choice, Effect
from postmill.stages.tables import closest, find


class Option(NamedTuple):
    """One leaf. `kind` is its annotated type, `default` NODEFAULT where a value is required."""

    path: str
    kind: Any
    default: Any
    effect: Effect
    choice: Choice | None = None
    """Set for an option that chooses: its value is a name."""


def bare(kind: Any) -> Any:
    """`T` for `Annotated[T, ...]`, `T | None` and both."""
    if typing.get_origin(kind) is typing.Annotated:
        return bare(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        some = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return bare(some[0]) if len(some) == 1 else kind
    return kind


def _notes(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind)[1:] if typing.get_origin(kind) is typing.Annotated else ()


def _choice(kind: Any) -> Choice | None:
    return next((note for note in _notes(kind) if isinstance(note, Choice)), None)


def _effect(kind: Any) -> Effect:
    return next((note for note in _notes(kind) if isinstance(note, Effect)), Effect.ANOTHER_RUN)


def is_group(kind: Any) -> bool:
    """Whether a field of this type is a struct of options."""
    plain = bare(kind)
    return isinstance(plain, type) and issubclass(plain, msgspec.Struct) and _choice(kind) is None


class Field(NamedTuple):
    """A field of a struct with its type resolved and its default made."""

    name: str
    kind: Any
    default: Any

    @property
    def word(self) -> str:
        """What people call it: `for_` is `for`."""
        return self.name.removesuffix("_")


def fields(struct: type[Any]) -> Iterator[Field]:
    """The fields of a config struct, in order."""
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        made = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        yield Field(field.name, hints[field.name], made)


def tag(struct: Any) -> str:
    """The name by which a struct, or one of its values, is chosen."""
    return str(struct.__struct_config__.tag)


def chosen_struct(field: Field, name: str | None) -> type[Any]:
    """The struct of a choice field: the one called `name`, or the default's. Raises ConfigError (2)."""
    choice = _choice(field.kind)
    assert choice is not None
    if name is None or name == tag(field.default):
        return type(field.default)
    struct: type[Any] = find(f"--{field.name.replace('_', '-')}", choice.group, choice.table, name)
    return struct


def options(struct: type[Any], chosen: Mapping[str, str] = types.MappingProxyType({})) -> dict[str, Option]:
    """All options by path, given what was chosen at each choice (name by path). Raises ConfigError (2)."""
    return dict(_walk(struct, chosen, "", Effect.ANOTHER_RUN))


def _walk(struct: type[Any], chosen: Mapping[str, str], prefix: str, outer: Effect) -> Iterator[tuple[str, Option]]:
    for field in fields(struct):
        effect = _effect(field.kind) if outer is Effect.ANOTHER_RUN else outer
        choice = _choice(field.kind)
        path = prefix + field.word
        if choice is not None:
            yield path, Option(path, field.kind, tag(field.default), effect, choice)
            picked = chosen_struct(field, chosen.get(path))
            yield from _walk(picked, chosen, f"{tag(picked)}.", effect)
        elif is_group(field.kind):
            yield from _walk(bare(field.kind), chosen, f"{path}.", effect)
        else:
            yield path, Option(path, field.kind, field.default, effect)


def short_names(known: Mapping[str, Option]) -> dict[str, str]:
    """Name -> path for every last part that belongs to one option only; paths stand for themselves."""
    by_last: dict[str, list[str]] = {}
    for path in known:
        by_last.setdefault(path.rpartition(".")[2], []).append(path)
    names = {last: paths[0] for last, paths in by_last.items() if len(paths) == 1}
    return names | {path: path for path in known}


def explain_unknown(name: str, owner: str, struct: type[Any], known: Mapping[str, Option]) -> str:
    """Why no option of `owner` is called `name`: several are, or it is of a choice that was not made, or none is."""
    several = [path for path in known if path.rpartition(".")[2] == name]
    if several:
        return f"stands for several options: {', '.join(_flag(path) for path in several)}; say which"
    for path, option in known.items():
        owners = [other for other in option.choice.table if _has(struct, path, other, name)] if option.choice else []
        owners = [other for other in owners if not any(o.startswith(f"{other}.") for o in known)]
        if owners:
            one = "choose that" if len(owners) == 1 else "choose one of them"
            return f"is an option of {_flag(path)} {', '.join(owners)}; {one}, or leave it out"
    return f"no such option of {owner}{closest(name, [*known, *short_names(known)])}"


def _has(struct: type[Any], path: str, other: str, name: str) -> bool:
    """Whether the choice at `path`, if it is `other`, has an option of this name."""
    added = {o: option for o, option in options(struct, {path: other}).items() if o.startswith(f"{other}.")}
    return name in added.keys() | {o.partition(".")[2] for o in added} | short_names(added).keys()


def _flag(path: str) -> str:
    return "--" + path.replace("_", "-")


def build(struct: type[Any], values: Mapping[str, Any], chosen: Mapping[str, str], prefix: str = "") -> Any:
    """A config from values by path, each already of its type. What is not given has its default.

    Raises ValueError as the structs' own checks do.
    """
    made: dict[str, Any] = {}
    for field in fields(struct):
        path = prefix + field.word
        if _choice(field.kind) is not None:
            picked = chosen_struct(field, chosen.get(path))
            given = any(name.startswith(f"{tag(picked)}.") for name in values)
            if given or picked is not type(field.default):
                made[field.name] = build(picked, values, chosen, f"{tag(picked)}.")
        elif is_group(field.kind):
            group = build(bare(field.kind), values, chosen, f"{path}.")
            if group != field.default:
                made[field.name] = group
        elif path in values:
            made[field.name] = values[path]
    return struct(**made)


def make(struct: type[Any], **given: Any) -> Any:
    """A config as flags would make it: `make(Train, tuner="lora", rank=8, bins_per_step=4)`.

    A choice is a name, or its struct; any other name is an option's, or its last part where only one has it. Raises
    ConfigError (2) for a name that does not fit, ValueError for a value.
    """
    return _made(struct, {}, {}, given)


def changed(config: Any, **given: Any) -> Any:
    """`config` with other values, named as in `make`."""
    struct = type(config)
    chosen, values = flatten(struct, to_plain(config))
    return _made(struct, chosen, values, given)


def _made(struct: type[Any], chosen: dict[str, str], before: dict[str, Any], given: dict[str, Any]) -> Any:
    choices = _choices(struct)
    values = dict(before)
    for name in choices.keys() & given.keys():
        value, path = given[name], choices[name]
        chosen[path] = tag(value) if isinstance(value, msgspec.Struct) else str(value)
        if isinstance(value, msgspec.Struct):
            values |= {f"{chosen[path]}.{part}": item for part, item in msgspec.structs.asdict(value).items()}
    known = options(struct, chosen)
    names = short_names(known)
    for word, value in given.items():
        name = word.removesuffix("_")
        if name not in choices:
            if name not in names:
                raise ConfigError(f"{name}: {explain_unknown(name, struct.__name__, struct, known)}")
            values[names[name]] = value
    typed = {path: msgspec.convert(value, known[path].kind) for path, value in values.items() if path in known}
    return build(struct, typed, chosen)


def _choices(struct: type[Any]) -> dict[str, str]:
    """Name and path -> path of every choice."""
    known = {path: option for path, option in options(struct).items() if option.choice is not None}
    return short_names(known)


def to_plain(config: Any) -> dict[str, Any]:
    """A config as plain data, for the manifest. A choice has its name as `type`."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def from_plain(struct: type[Any], data: Mapping[str, Any]) -> Any:
    """A config from what `to_plain` gave. Raises ConfigError (2) for data of another version of the struct."""
    chosen, values = flatten(struct, data)
    known = options(struct, chosen)
    unknown = [path for path in values if path not in known]
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such option in this version of {struct.__name__}")
    try:
        typed = {path: msgspec.convert(value, known[path].kind) for path, value in values.items()}
        return build(struct, typed, chosen)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{struct.__name__}: {error}") from error


def flatten(struct: type[Any], data: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, str], dict[str, Any]]:
    """What was chosen and the values, both by path, of plain data. Fields that the struct lacks are kept."""
    chosen: dict[str, str] = {}
    values: dict[str, Any] = {}
    known = {field.name: field for field in fields(struct)}
    for name, value in data.items():
        field = known.get(name)
        path = prefix + (field.word if field else name)
        if field is not None and _choice(field.kind) is not None and isinstance(value, dict):
            chosen[path] = picked = str(value.get("type", ""))
            values |= {f"{picked}.{key}": item for key, item in value.items() if key != "type"}
        elif field is not None and is_group(field.kind) and isinstance(value, dict):
            below, inner = flatten(bare(field.kind), value, f"{path}.")
            chosen |= below
            values |= inner
        else:
            values[path] = value
    return chosen, values


def keyed(struct: type[Any], data: Mapping[str, Any], effect: Effect = Effect.ANOTHER_RUN) -> dict[str, Any]:
    """The options with this effect, by path, of plain data; by default what decides the result and enters a content
    key."""
    chosen, values = flatten(struct, data)
    known = options(struct, chosen)
    counted = {path for path, option in known.items() if option.effect is effect}
    values |= chosen
    others = effect is Effect.ANOTHER_RUN
    return {path: value for path, value in values.items() if path in counted or (others and path not in known)}


def changes(
    struct: type[Any], before: Mapping[str, Any], after: Mapping[str, Any], effect: Effect = Effect.ANOTHER_RUN
) -> list[str]:
    """`path was X, is Y` for every option with this effect, by default another run, of plain data of two configs."""
    old, new = (_lenient(struct, data, effect) for data in (before, after))
    return [
        f"{path} was {old.get(path)!r}, is {new.get(path)!r}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


def _lenient(struct: type[Any], data: Mapping[str, Any], effect: Effect) -> dict[str, Any]:
    """`keyed`, also for data that another version wrote."""
    try:
        return keyed(struct, data, effect)
    except ConfigError:
        if effect is not Effect.ANOTHER_RUN:
            return {}
        chosen, values = flatten(struct, data)
        return values | dict(chosen)


def json_schema(struct: type[Any]) -> dict[str, Any]:
    """JSON Schema of a recipe's section: options and groups as tables, and one table for each name of a choice."""
    members, tables = _schema_members(struct)
    return _table_schema(members | tables)


def _table_schema(members: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": members, "additionalProperties": False}


def _schema_members(struct: type[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Schemas of the struct's own members, and of the tables that its choices put beside the outermost ones."""
    members: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for field in fields(struct):
        choice = _choice(field.kind)
        if choice is not None:
            members[field.word] = {"enum": sorted(choice.table), "default": tag(field.default)}
            tables |= {name: json_schema(chosen_struct(field, name)) for name in choice.table}
        elif is_group(field.kind):
            inner, others = _schema_members(bare(field.kind))
            members[field.word] = _table_schema(inner)
            tables |= others
        else:
            (schema,), parts = msgspec.json.schema_components([field.kind])
            members[field.word] = schema | ({"$defs": parts} if parts else {})
            if field.default is not msgspec.NODEFAULT:
                members[field.word]["default"] = msgspec.to_builtins(field.default)
    return members, tables
