"""Arrow values of every type as types that have a JSON form.

Times, decimals and identifiers become the text that Arrow spells for them, at any depth; half floats become floats;
dictionaries and runs give their values. Bytes, durations and intervals have no text of their own and are refused.
"""

import functools
import uuid
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pyarrow as pa


class NoText(ValueError):
    """A type without a JSON form. `path` is the column, or a member in it: `messages.image`."""

    def __init__(self, path: str, kind: Any) -> None:
        super().__init__(path, kind)
        self.path, self.kind = path, kind


def check_has_array(kind: Any, path: str) -> None:
    """Raises NoText for a type of which pyarrow makes no array, at any depth: it cannot be looked at, not even refused
    by `to_json_types`."""
    if kind.id in _WITHOUT_ARRAYS:
        raise NoText(path, kind)
    inner = (kind.value_type,) if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else ()
    for own in inner:
        check_has_array(own, path)
    for index in range(kind.num_fields):
        check_has_array(kind.field(index).type, f"{path}.{kind.field(index).name}")


def to_json_types(values: Any, path: str) -> Any:
    """`values` (an Arrow array) with every type in it one that `batch_to_lines` writes. Raises NoText."""
    return _converted(values, path)


def bytes_as_text(values: Any) -> Any:
    """Bytes at any depth of lists and structs as data URIs: how rows bring their pictures along."""
    kind, types = values.type, pa.types
    if types.is_binary(kind) or types.is_large_binary(kind):
        items = values.to_pylist()
        return pa.array([None if item is None else f"data:;base64,{b64encode(item).decode()}" for item in items])
    if types.is_struct(kind):
        made = [bytes_as_text(column) for column in values.flatten()]
        fields = [pa.field(kind.field(i).name, column.type) for i, column in enumerate(made)]
        return pa.StructArray.from_arrays(made, fields=fields, mask=values.is_null())
    if types.is_list(kind) or types.is_large_list(kind):
        make: Callable[..., Any] = pa.ListArray.from_arrays if types.is_list(kind) else pa.LargeListArray.from_arrays
        return make(_offsets(values), bytes_as_text(values.values), mask=values.is_null())
    return values


_WITHOUT_ARRAYS = (21, 22)
"""Arrow's numbers for two kinds of intervals: `Type::INTERVAL_MONTHS` and `Type::INTERVAL_DAY_TIME`."""
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_PLAIN = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, *_TEXTS)
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_SPELLED = (pa.types.is_timestamp, pa.types.is_date, pa.types.is_time, pa.types.is_decimal)


def _is_one_of(kind: Any, tests: tuple[Callable[[Any], bool], ...]) -> bool:
    return any(test(kind) for test in tests)


@functools.cache
def _is_plain(kind: Any) -> bool:
    """Whether values of the type are written as they are."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType) or types.is_float16(kind):
        return False
    if _is_one_of(kind, _LISTS):
        return _is_plain(kind.value_type)
    if types.is_struct(kind) or types.is_union(kind):
        return all(_is_plain(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_map(kind):
        return bool(types.is_string(kind.key_type)) and _is_plain(kind.item_type)
    return _is_one_of(kind, _PLAIN) or (bool(types.is_dictionary(kind)) and _is_plain(kind.value_type))


def _converted(values: Any, path: str) -> Any:
    kind = values.type
    if _is_plain(kind):
        return values
    make = next((make for tests, make in _MAKERS if _is_one_of(kind, tests)), _list)
    return make(values, path)


def _runs(values: Any, path: str) -> Any:
    import pyarrow.compute as pc  # 35 ms to load

    return _converted(pc.run_end_decode(values), path)


def _struct(values: Any, path: str) -> Any:
    members = [(values.type.field(i).name, column) for i, column in enumerate(values.flatten())]
    made = [_converted(column, f"{path}.{name}") for name, column in members]
    fields = [pa.field(name, column.type) for (name, _), column in zip(members, made, strict=True)]
    return pa.StructArray.from_arrays(made, fields=fields, mask=values.is_null())


def _list(values: Any, path: str) -> Any:
    kind, types = values.type, pa.types
    if types.is_fixed_size_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        return _converted(values.cast(pa.large_list(kind.value_type)), path)
    if not (types.is_list(kind) or types.is_large_list(kind)):
        raise NoText(path, kind)
    made: Callable[..., Any] = pa.ListArray.from_arrays if types.is_list(kind) else pa.LargeListArray.from_arrays
    return made(_offsets(values), _converted(values.values, path), mask=values.is_null())


def _offsets(values: Any) -> Any:
    """Where items start, in an array of its own: Arrow takes no nulls beside the offsets of a slice."""
    return pa.array(values.offsets.to_numpy(zero_copy_only=False), values.offsets.type)


def _map(values: Any, path: str) -> Any:
    """Keys that are numbers become text, as `json.dumps` has them; other keys have no place in JSON."""
    keys = values.keys
    if pa.types.is_integer(keys.type) or pa.types.is_large_string(keys.type) or pa.types.is_string_view(keys.type):
        keys = keys.cast(pa.string())
    elif not pa.types.is_string(keys.type):
        raise NoText(path, values.type)
    return pa.MapArray.from_arrays(_offsets(values), keys, _converted(values.items, path), mask=values.is_null())


def _extension(values: Any, path: str) -> Any:
    """A named type over another: an identifier, a truth in a byte, or what lies under it."""
    name = getattr(values.type, "extension_name", "")
    if name == "arrow.uuid":
        items = values.storage.to_pylist()
        return pa.array([None if item is None else str(uuid.UUID(bytes=item)) for item in items], pa.string())
    if name == "arrow.bool8":
        return values.storage.cast(pa.bool_())
    return _converted(values.storage, path)


def _is_extension(kind: Any) -> bool:
    return isinstance(kind, pa.BaseExtensionType)


_MAKERS: tuple[tuple[tuple[Callable[[Any], bool], ...], Callable[[Any, str], Any]], ...] = (
    ((_is_extension,), _extension),
    (_SPELLED, lambda values, path: values.cast(pa.string())),
    ((pa.types.is_float16,), lambda values, path: values.cast(pa.float32())),
    ((pa.types.is_dictionary,), lambda values, path: _converted(values.dictionary_decode(), path)),
    ((pa.types.is_run_end_encoded,), _runs),
    ((pa.types.is_struct,), _struct),
    ((pa.types.is_map,), _map),
)
