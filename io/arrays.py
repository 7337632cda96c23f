"""Arrow arrays to NumPy and back by their buffers, without a copy.

`pa.array`, `pa.record_batch` and `Array.to_numpy` do the same, but import pandas wherever it is installed: half a
second in a data stage that has no use for it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_numpy(array: pa.Array) -> NDArray[Any]:
    """The values of a fixed-width array as a read-only view. Where the array is null the value means nothing."""
    dtype = np.dtype(array.type.to_pandas_dtype()) if not pa.types.is_fixed_size_binary(array.type) else None
    dtype = dtype or np.dtype(f"V{array.type.byte_width}")
    data = array.buffers()[1]
    if data is None or len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(data, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def validity(array: pa.Array) -> NDArray[np.bool_]:
    """True where `array` is not null."""
    bitmap = array.buffers()[0]
    if array.null_count == 0 or bitmap is None:
        return np.ones(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(np.bool_)


def from_numpy(values: NDArray[Any], type: pa.DataType) -> pa.Array:
    """A fixed-width array without nulls over the memory of `values`, which must have the width of `type`."""
    assert values.dtype.itemsize * 8 == type.bit_width, f"{values.dtype} is not {type}"
    return pa.Array.from_buffers(type, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def list_of(offsets: NDArray[np.int32], values: pa.Array, type: pa.DataType) -> pa.Array:
    """A list array: row i is `values[offsets[i]:offsets[i + 1]]`."""
    return pa.Array.from_buffers(type, len(offsets) - 1, [None, pa.py_buffer(offsets)], children=[values])


def text(words: Sequence[str | None]) -> pa.Array:
    """A utf8 array, null where a word is None."""
    data = [word.encode() if word is not None else b"" for word in words]
    offsets = np.cumsum([0, *map(len, data)], dtype=np.int32)
    bitmap, missing = _bitmap(words)
    buffers = [bitmap, pa.py_buffer(offsets), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.utf8(), len(data), buffers, null_count=missing)


def fixed(values: Sequence[bytes | None], width: int) -> pa.Array:
    """A fixed-size binary array of `width` bytes a value, null where a value is None."""
    bitmap, missing = _bitmap(values)
    data = b"".join(value if value is not None else bytes(width) for value in values)
    return pa.Array.from_buffers(pa.binary(width), len(values), [bitmap, pa.py_buffer(data)], null_count=missing)


def numbers(values: Sequence[int | None], type: pa.DataType) -> pa.Array:
    """An integer array, null where a value is None."""
    bitmap, missing = _bitmap(values)
    data = np.array([value if value is not None else 0 for value in values], f"i{type.bit_width // 8}")
    return pa.Array.from_buffers(type, len(values), [bitmap, pa.py_buffer(data)], null_count=missing)


def adopt(batch: Any) -> pa.RecordBatch:
    """A batch of another library, by its `__arrow_c_array__`."""
    return pa.RecordBatch._import_from_c_capsule(*batch.__arrow_c_array__())


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """A batch of no rows."""
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def _bitmap(values: Sequence[object]) -> tuple[pa.Buffer | None, int]:
    """Validity bitmap of `values`, None if all are there, and how many are not."""
    valid = np.fromiter((value is not None for value in values), np.bool_, len(values))
    missing = len(values) - int(valid.sum())
    return (pa.py_buffer(np.packbits(valid, bitorder="little")), missing) if missing else (None, 0)
