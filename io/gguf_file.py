"""GGUF, the one file that llama.cpp and Ollama run a model from: metadata, then tensors by name, each at a multiple of
32 bytes.

Written as safetensors files are here: everything is said beforehand, then data in any order, a block at a time. Read
with every number of the header checked first.
Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, version 3.
"""

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import msgspec

from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError
from postmill.io.tensor_file import TensorFileWriter

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_HEADER_BYTES = 200_000_000
_MAX_DIMS = 4

GGML_TYPES = {
    "f32": (0, 1, 4),
    "f16": (1, 1, 2),
    "bf16": (30, 1, 2),
    "q4_0": (2, 32, 18),
    "q4_1": (3, 32, 20),
    "q5_0": (6, 32, 22),
    "q5_1": (7, 32, 24),
    "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84),
    "q3_k": (11, 256, 110),
    "q4_k": (12, 256, 144),
    "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210),
    "iq4_nl": (20, 32, 18),
    "iq4_xs": (23, 256, 136),
}
"""Types that are written here: name -> (number in the file, weights of a block, bytes of a block)."""
_NAMES = {number: name for name, (number, _, _) in GGML_TYPES.items()}

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 4, 5, 6, 7, 8, 9, 10
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Value = bool | int | float | str | list[int] | list[float] | list[str]
"""Of metadata. Counts are written as uint32, lists of integers as int32, floats as float32."""


class GgufTensor(msgspec.Struct, frozen=True):
    """One tensor. `shape` is as torch has it, rows first; `start` is a byte offset in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


def tensor_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. The type's block divides a row: the caller has checked it."""
    _, block, size = GGML_TYPES[kind]
    assert not shape or shape[-1] % block == 0
    return math.prod(shape) // block * size


class GgufWriter(TensorFileWriter):
    """tensors: name -> (type, shape), in the order they lie. Closing raises StageError (70) on a gap."""

    def __init__(
        self, path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> None:
        parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
        for key, value in metadata.items():
            parts += [_string(key), _value(value)]
        position = 0
        starts: dict[str, int] = {}
        sizes = {name: tensor_bytes(kind, shape) for name, (kind, shape) in tensors.items()}
        self.num_bytes = sum(sizes.values())
        for name, (kind, shape) in tensors.items():
            starts[name] = position
            # the file names the longest-running dimension first
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            parts += [_string(name), dims, struct.pack("<IQ", GGML_TYPES[kind][0], position)]
            position = _aligned(position + sizes[name])
        header = b"".join(parts)
        base = _aligned(len(header))
        starts = {name: base + start for name, start in starts.items()}
        super().__init__(path, header, starts, sizes, base + position)


class GgufFile:
    """A file open for reading: `metadata` and `tensors` by name.

    Raises ArtifactError: 66 if it is not there, 65 if its header breaks a rule of the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file; give a GGUF file", NO_INPUT) from None
        try:
            self.metadata, self.tensors = _Header(self._fd, path).read()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, name: str, part: int = 0, num_parts: int = 1) -> bytearray:
        """Bytes of one tensor, or of one of the equal parts it is made of. Raises ArtifactError (65) if the file has
        shrunk.
        """
        entry = self.tensors[name]
        buffer = bytearray(entry.num_bytes // num_parts)
        start = entry.start + part * len(buffer)
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [memoryview(buffer)[done:]], start + done)
            if got == 0:
                raise ArtifactError(f"{self.path}: tensor {name}: the file was cut while it was read; get it again")
            done += got
        return buffer


class _Header:
    """What stands before the data, read from left to right."""

    def __init__(self, fd: int, path: Path) -> None:
        self.path, self.size, self.at = path, os.fstat(fd).st_size, 0
        self.raw = os.pread(fd, min(self.size, MAX_HEADER_BYTES), 0)

    def fail(self, what: str) -> NoReturn:
        raise ArtifactError(f"{self.path}: {what}; the file is damaged or no GGUF file, get it again", BAD_DATA)

    def take(self, count: int) -> bytes:
        if count > len(self.raw) - self.at:
            self.fail(f"header ends at byte {len(self.raw)}, {count} more are named at {self.at}")
        self.at += count
        return self.raw[self.at - count : self.at]

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))

    def string(self) -> str:
        raw = self.take(*self.numbers("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"text at byte {self.at - len(raw)} is not UTF-8")

    def value(self) -> Any:
        (kind,) = self.numbers("I")
        if kind != _ARRAY:
            return self.scalars(kind, 1)[0]
        kind, count = self.numbers("IQ")
        return self.scalars(kind, count)

    def scalars(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            if count > len(self.raw):
                self.fail(f"{count} texts in a file of {self.size} bytes")
            return [self.string() for _ in range(count)]
        if kind not in _FIXED:
            self.fail(f"metadata of type {kind}, which there is not")
        size = struct.calcsize(f"<{_FIXED[kind]}")
        return list(struct.unpack(f"<{count}{_FIXED[kind]}", self.take(count * size)))

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self.take(4) != MAGIC:
            self.fail("does not begin with GGUF")
        version, num_tensors, num_values = self.numbers("IQQ")
        if version != VERSION:
            self.fail(f"is GGUF of version {version}, expected {VERSION}")
        metadata = {}
        for _ in range(num_values):
            key = self.string()
            metadata[key] = self.value()
        found = [self.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment <= 0:
            self.fail(f"general.alignment is {alignment!r}")
        base = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, start in found:
            entry = GgufTensor(name, kind, shape, base + start, tensor_bytes(kind, shape))
            if name in tensors:
                self.fail(f"names tensor {name!r} twice")
            if entry.start + entry.num_bytes > self.size:
                self.fail(f"tensor {name!r} ends at byte {entry.start + entry.num_bytes}, the file at {self.size}")
            tensors[name] = entry
        return metadata, tensors

    def tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self.string()
        (num_dims,) = self.numbers("I")
        if num_dims > _MAX_DIMS:
            self.fail(f"tensor {name!r} has {num_dims} dimensions, at most {_MAX_DIMS} are allowed")
        shape = tuple(reversed(self.numbers(f"{num_dims}Q")))
        number, start = self.numbers("IQ")
        if number not in _NAMES:
            self.fail(f"tensor {name!r} is of type {number}, which is not read here")
        kind = _NAMES[number]
        if shape and shape[-1] % GGML_TYPES[kind][1]:
            self.fail(f"tensor {name!r} has rows of {shape[-1]}, no multiple of the {GGML_TYPES[kind][1]} of {kind}")
        return name, kind, shape, start


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            body = b"".join(_string(str(item)) for item in value)
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + body
        kind, form = (_FLOAT32, "f") if value and isinstance(value[0], float) else (_INT32, "i")
        return struct.pack(f"<IIQ{len(value)}{form}", _ARRAY, kind, len(value), *value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value) if value < 2**32 else struct.pack("<IQ", _UINT64, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    return struct.pack("<I", _STRING) + _string(value)
