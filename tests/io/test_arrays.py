"""Conversions by buffer, against pyarrow's own."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from postmill.io.arrays import from_numpy, list_of, text, to_numpy, validity


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.float32(), pa.float64()])
def test_numbers_there_and_back_without_a_copy(kind):
    values = np.arange(13).astype(kind.to_pandas_dtype())
    array = from_numpy(values, kind)
    assert array.equals(pa.array(values, kind))
    assert to_numpy(array).tolist() == values.tolist()
    assert np.shares_memory(to_numpy(array), values)
    assert to_numpy(array.slice(5, 4)).tolist() == values[5:9].tolist()


def test_a_width_that_does_not_fit_is_our_mistake():
    with pytest.raises(AssertionError, match="int64 is not int32"):
        from_numpy(np.arange(3), pa.int32())


def test_nulls_are_told_by_validity_also_in_slices():
    array = pa.array([1, None, 3, None, 5, 6, None, 8, None, 10])
    for piece in (array, array.slice(3), array.slice(1, 8), array.slice(4, 2)):
        assert validity(piece).tolist() == [value is not None for value in piece.to_pylist()]
        valid = validity(piece)
        assert to_numpy(piece)[valid].tolist() == [value for value in piece.to_pylist() if value is not None]
    assert validity(pa.nulls(0, pa.int8())).tolist() == []
    assert to_numpy(pa.nulls(0, pa.int8())).tolist() == []


def test_fixed_size_binary_is_raw_bytes():
    array = pa.array([b"ab", b"cd", b"ef"], pa.binary(2))
    assert [bytes(value) for value in to_numpy(array.slice(1))] == [b"cd", b"ef"]


def test_lists_and_text():
    kind = pa.list_(pa.int64())
    array = list_of(np.array([0, 2, 2, 5], np.int32), from_numpy(np.arange(5), pa.int64()), kind)
    array.validate(full=True)
    assert array.to_pylist() == [[0, 1], [], [2, 3, 4]]
    words = text(["", "dropped", "多", "x"])
    words.validate(full=True)
    assert words.to_pylist() == ["", "dropped", "多", "x"]


def test_none_of_it_loads_pandas():
    program = (
        "import sys, numpy as np, pyarrow as pa; from postmill.io.arrays import *;"
        "a = from_numpy(np.arange(3), pa.int64()); to_numpy(a); validity(a); text(['a']);"
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
