"""Safetensors files made to crash, mislead or exhaust a reader. Each must be refused, naming what is wrong with it."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from postmill.io.errors import ArtifactError
from postmill.io.safetensors_file import SafetensorsFile


def _pack(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _file(header: object, data: bytes = b"") -> bytes:
    return _pack(json.dumps(header).encode(), data)


def _tensor(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _one(shape: object, offsets: object, dtype: object = "F32", data: bytes = bytes(8)) -> bytes:
    return _file({"a": _tensor(shape, offsets, dtype)}, data)


def _two(first: list[int], second: list[int], data: bytes) -> bytes:
    return _file(
        {"a": _tensor([(first[1] - first[0])], first, "U8"), "b": _tensor([second[1] - second[0]], second, "U8")}, data
    )


ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "at least 8"),
    "seven bytes": (b"\0" * 7, "at least 8"),
    "length 0": (struct.pack("<Q", 0), "does not begin with {"),
    "length 0 with data": (struct.pack("<Q", 0) + b"{}", "does not begin with {"),
    "length beyond the file": (_pack(b"{}", length=3), "in a file of"),
    "length 2^63": (_pack(b"{}", length=2**63), "at most"),
    "length 2^64-1": (_pack(b"{}", length=2**64 - 1), "at most"),
    "length 100 MB + 1": (_pack(b"{}", length=100_000_001), "at most"),
    "length 100 MB": (_pack(b"{}", length=100_000_000), "in a file of"),
    "header of spaces": (_pack(b"        "), "does not begin"),
    "header begins with a space": (_pack(b" {}"), "does not begin"),
    "byte order mark": (_pack(b"\xef\xbb\xbf{}"), "does not begin"),
    "array": (_pack(b"[]"), "does not begin"),
    "utf-16": (_pack("{}".encode("utf-16")), "does not begin"),
    "not utf-8": (_pack(b'{"\xff": 1}'), "not JSON"),
    "not JSON": (_pack(b"{a}"), "not JSON"),
    "half a document": (_pack(b'{"a": '), "not JSON"),
    "two documents": (_pack(b"{}{}"), "not JSON"),
    "deep nesting": (_pack(b'{"a":' + b"[" * 200_000), "not JSON"),
    "number of 5,000 digits": (_pack(b'{"a":' + b"9" * 5000 + b"}"), "not JSON|no dtype"),
    "same name twice": (
        _pack(b'{"a":%s,"a":%s}' % (2 * (b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}',)), b"x"),
        "'a' twice",
    ),
    "same key twice in a tensor": (
        _pack(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"), "'dtype' twice"
    ),
    "same key twice in the metadata": (_pack(b'{"__metadata__":{"x":"1","x":"2"}}'), "'x' twice"),
    "metadata is a list": (_file({"__metadata__": []}), "__metadata__"),
    "metadata holds a number": (_file({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata is null": (_file({"__metadata__": None}), "__metadata__"),
    "tensor is a number": (_file({"a": 1}), "'a' has no dtype"),
    "tensor is empty": (_file({"a": {}}), "'a' has no dtype"),
    "tensor lacks offsets": (_file({"a": {"dtype": "F32", "shape": [1]}}), "'a' has no dtype"),
    "tensor has one key more": (_file({"a": _tensor([2], [0, 8]) | {"x": 1}}, bytes(8)), "more than these"),
    "unknown dtype": (_one([2], [0, 8], "F33"), "dtype 'F33'"),
    "lower-case dtype": (_one([2], [0, 8], "f32"), "dtype 'f32'"),
    "dtype is a list": (_one([2], [0, 8], ["F32"]), "dtype"),
    "dtype is null": (_one([2], [0, 8], None), "dtype None"),
    "shape is a number": (_one(2, [0, 8]), "shape 2"),
    "shape is text": (_one("2", [0, 8]), "shape '2'"),
    "negative size": (_one([-2], [0, 8]), r"shape \[-2\]"),
    "two negative sizes": (_one([-1, -2], [0, 8]), r"shape \[-1, -2\]"),
    "fractional size": (_one([2.0], [0, 8]), r"shape \[2.0\]"),
    "size is true": (_one([True, 2], [0, 8]), r"shape \[True, 2\]"),
    "size is null": (_one([None], [0, 8]), "shape"),
    "size 2^63": (_one([2**63], [0, 8]), "shape"),
    "sizes wrap to 2": (_one([2**32, 2**32, 2], [0, 8]), "more than can be addressed"),
    "sizes wrap to the right bytes": (_one([2**62 + 2], [0, 8]), "more than can be addressed"),
    "shape too small": (_one([1], [0, 8]), "'a' has 8 bytes"),
    "shape too large": (_one([3], [0, 8]), "'a' has 8 bytes"),
    "dtype too large": (_one([2], [0, 8], "F64"), "'a' has 8 bytes"),
    "half a byte": (_one([1], [0, 1], "F4", b"x"), "'a' has 1 bytes"),
    "offsets are one": (_one([2], [8]), "data_offsets"),
    "offsets are three": (_one([2], [0, 4, 8]), "data_offsets"),
    "offsets are backwards": (_one([2], [8, 0]), "data_offsets"),
    "offset is negative": (_one([2], [-8, 0]), "data_offsets"),
    "offset is text": (_one([2], ["0", "8"]), "data_offsets"),
    "offset is fractional": (_one([2], [0.0, 8.0]), "data_offsets"),
    "offset is true": (_one([1], [False, True], "U8", b"x"), "data_offsets"),
    "offset beyond 2^63": (_one([0], [2**64, 2**64]), "data_offsets"),
    "data beyond the file": (_one([4], [0, 16]), "end at byte"),
    "file beyond the data": (_one([1], [0, 4]), "end at byte"),
    "data cut": (_one([2], [0, 8], data=bytes(7)), "end at byte"),
    "hidden data before": (_one([1], [4, 8]), "leaves a hole"),
    "overlap": (_two([0, 4], [2, 6], bytes(6)), "overlaps"),
    "one inside the other": (_two([0, 8], [2, 4], bytes(8)), "overlaps"),
    "same bytes twice": (_two([0, 4], [0, 4], bytes(4)), "overlaps"),
    "hole": (_two([0, 2], [4, 6], bytes(6)), "leaves a hole"),
    "empty tensor far out": (_file({"a": _tensor([0], [100, 100])}), "leaves a hole"),
    "empty tensor inside another": (_two([0, 4], [2, 2], bytes(4)), "overlaps"),
    "not a number": (_pack(b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"x"), "shape"),
    "zip after the tensors": (_one([2], [0, 8], data=bytes(8) + b"PK\3\4"), "end at byte"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(tmp_path: Path, name: str) -> None:
    content, what = ATTACKS[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=what) as caught:
        SafetensorsFile(path)
    assert caught.value.code == 65
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 40


def test_a_refused_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with pytest.raises(ArtifactError):
            SafetensorsFile(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_flips_of_any_byte_are_refused_or_read(tmp_path: Path) -> None:
    """2,000 files with one byte changed: each is refused with our error, or every tensor can be read in its bounds."""
    good = save(
        {"layers.0.weight": np.arange(60, dtype=np.float32).reshape(5, 12), "bias": np.zeros(7, np.float16)},
        metadata={"format": "pt"},
    )
    path = tmp_path / "x.safetensors"
    dice = random.Random(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(good)
        damaged[dice.randrange(len(good))] ^= dice.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            with SafetensorsFile(path) as file:
                for name, entry in file.tensors.items():
                    assert len(file.read(name)) == entry.num_bytes
        except ArtifactError as error:
            assert error.code == 65
            refused += 1
    assert 500 < refused < 2000
