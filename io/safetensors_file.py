"""Weights on disk: safetensors files, read and written tensor by tensor, a block at a time.

The format is eight bytes of header length, a JSON header of names, dtypes, shapes and offsets, and the data without
gaps (<https://github.com/huggingface/safetensors>). Files come from strangers, so every number in the header is checked
before a byte of data is read, and data is read with `pread` rather than mapped: a file that shrinks under a reader is
then an error with a name, not a SIGBUS, and what was read does not stay in our memory.
"""

import errno
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import msgspec

from postmill.io.errors import BAD_DATA, NO_INPUT, REFUSED, ArtifactError
from postmill.io.json_file import load_json
from postmill.io.tensor_file import TensorFileWriter, write_all

MAX_HEADER_BYTES = 100_000_000
_MAX_DIM = 2**63 - 1
_COPY_BYTES = 8 * 2**20
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5_000_000_000
"""Most bytes of tensors in a file, as transformers writes them."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element of each dtype of the format."""


class TensorEntry(msgspec.Struct, frozen=True):
    """One tensor of a file. `start` and `end` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


class SafetensorsFile:
    """A file open for reading. `tensors` is in the order of the data.

    Raises ArtifactError: 66 if it is not there, 65 naming the tensor if its header breaks a rule of the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file; give the whole model folder", NO_INPUT) from None
        try:
            size = os.fstat(self._fd).st_size
            self.metadata, self.tensors = _read_header(self._fd, size, path)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def read(self, name: str) -> bytearray:
        """All bytes of one tensor."""
        buffer = bytearray(self.tensors[name].num_bytes)
        self.read_into(name, 0, memoryview(buffer))
        return buffer

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `offset` of a tensor. Raises ArtifactError (65) if the file has shrunk."""
        entry = self.tensors[name]
        assert offset >= 0 and offset + len(buffer) <= entry.num_bytes
        done = 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:]], entry.start + offset + done)
            if got == 0:
                raise ArtifactError(f"{self.path}: tensor {name}: the file was cut while it was read; get it again")
            done += got

    def copy_to(self, name: str, target_fd: int, target_offset: int) -> None:
        """Copy a tensor's bytes into another file inside the kernel, or through a buffer where that cannot be."""
        entry = self.tensors[name]
        done = 0
        while done < entry.num_bytes:
            count = min(entry.num_bytes - done, 2**30)
            try:
                got = os.copy_file_range(self._fd, target_fd, count, entry.start + done, target_offset + done)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                got = 0
            if got == 0:
                break
            done += got
        buffer = memoryview(bytearray(min(_COPY_BYTES, entry.num_bytes - done)))
        while done < entry.num_bytes:
            part = buffer[: entry.num_bytes - done]
            self.read_into(name, done, part)
            write_all(target_fd, part, target_offset + done)
            done += len(part)


def _read_header(fd: int, size: int, path: Path) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    def fail(what: str) -> NoReturn:
        raise ArtifactError(f"{path}: {what}; the file is damaged or hostile, get it again", BAD_DATA)

    if size < 8:
        fail(f"{size} bytes, a safetensors file has at least 8")
    (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
    if length > MAX_HEADER_BYTES:
        fail(f"header of {length} bytes, at most {MAX_HEADER_BYTES} are allowed")
    if length > size - 8:
        fail(f"header of {length} bytes in a file of {size}")
    raw = os.pread(fd, length, 8)
    if not raw.startswith(b"{"):
        fail("header does not begin with {")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            fail(f"header names {twice!r} twice")
        return members

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ArtifactError) as error:
        if isinstance(error, ArtifactError):
            raise
        fail(f"header is not JSON ({error})")
    except ValueError as error:  # a number of more digits than Python converts
        fail(f"header is not JSON ({error})")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        fail("__metadata__ is not an object of strings")
    entries = [_entry(name, value, 8 + length, fail) for name, value in header.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    position = 8 + length
    for entry in entries:
        if entry.start != position:
            what = "overlaps the one before" if entry.start < position else "leaves a hole before it"
            fail(f"tensor {entry.name!r} {what}: begins at {entry.start}, expected {position}")
        position = entry.end
    if position != size:
        fail(f"tensors end at byte {position}, the file at {size}")
    return metadata, {entry.name: entry for entry in entries}


def _entry(name: str, value: Any, base: int, fail: Any) -> TensorEntry:
    """One header entry, checked by itself."""
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        fail(f"tensor {name!r} has no dtype, shape and data_offsets, or more than these")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        fail(f"tensor {name!r} has dtype {dtype!r}, which is none of the format's")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n <= _MAX_DIM for n in shape):
        fail(f"tensor {name!r} has shape {shape!r}, expected a list of sizes")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(n) is int and 0 <= n <= _MAX_DIM for n in offsets)
        or offsets[0] > offsets[1]
    ):
        fail(f"tensor {name!r} has data_offsets {offsets!r}, expected [begin, end]")
    num_elements = math.prod(shape)
    if num_elements > _MAX_DIM or num_elements * DTYPE_BITS[dtype] > _MAX_DIM:
        fail(f"tensor {name!r} has shape {shape!r}, more than can be addressed")
    num_bits = num_elements * DTYPE_BITS[dtype]
    if num_bits % 8 or num_bits // 8 != offsets[1] - offsets[0]:
        fail(f"tensor {name!r} has {offsets[1] - offsets[0]} bytes, {dtype} of shape {shape!r} has {num_bits // 8}")
    return TensorEntry(name, dtype, tuple(shape), base + offsets[0], base + offsets[1])


class SafetensorsWriter(TensorFileWriter):
    """tensors: name -> (dtype, shape), in the order the data is to lie. Closing raises StageError (70) on a gap."""

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        position = 0
        self._sizes: dict[str, int] = {}
        for name, (dtype, shape) in tensors.items():
            num_bytes = self._sizes[name] = math.prod(shape) * DTYPE_BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + num_bytes]}
            position += num_bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        base = 8 + len(text)
        starts = {name: base + header[name]["data_offsets"][0] for name in tensors}
        super().__init__(path, struct.pack("<Q", len(text)) + text, starts, self._sizes, base + position)

    def num_bytes(self, name: str) -> int:
        return self._sizes[name]

    def copy(self, name: str, source: SafetensorsFile, source_name: str) -> None:
        """Take a tensor over from another file as it is."""
        source.copy_to(source_name, self._fd, self._start[name])
        self._written(name, source.tensors[source_name].num_bytes)


def deal_to_files(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Names of tensors, of so many bytes each, by the name of the file that takes them, in order."""
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if held and held + size > SHARD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{n + 1:05}-of-{len(groups):05}.safetensors": group for n, group in enumerate(groups)}


class Weights:
    """The safetensors files of a model folder, open: `files` by name, and `where` each tensor lies."""

    def __init__(self, files: dict[str, SafetensorsFile], where: dict[str, str]) -> None:
        self.files, self.where = files, where

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self.files.values():
            file.close()

    def file_of(self, name: str) -> SafetensorsFile:
        return self.files[self.where[name]]

    def entry(self, name: str) -> TensorEntry:
        return self.file_of(name).tensors[name]


def open_weights(folder: Path) -> Weights:
    """Open the weights of the model in `folder`: through its index, or the one file there is.

    Raises ArtifactError: 66 if a file is not there, 65 if index and files disagree, 77 if the index leads outside.
    """
    if (folder / INDEX).is_file():
        return _open_sharded(folder)
    single = folder / SINGLE
    if not single.is_file():
        others = sorted(folder.glob("*.safetensors"))
        if len(others) != 1:
            raise ArtifactError(
                f"{folder}: neither {SINGLE} nor {INDEX} in it; give a whole model in safetensors", NO_INPUT
            )
        single = others[0]
    file = SafetensorsFile(single)
    return Weights({single.name: file}, dict.fromkeys(file.tensors, single.name))


def _open_sharded(folder: Path) -> Weights:
    place = folder / INDEX
    where = load_json(place).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ArtifactError(f"{place}: weight_map is not an object of file names; get the model again")
    files: dict[str, SafetensorsFile] = {}
    try:
        for name in sorted(set(where.values())):
            files[name] = SafetensorsFile(_inside(folder, name))
        for tensor, name in where.items():
            if tensor not in files[name].tensors:
                raise ArtifactError(f"{place}: tensor {tensor!r} is not in {name}; get the model again")
        for name, file in files.items():
            for tensor in file.tensors:
                if where.get(tensor) != name:
                    raise ArtifactError(f"{folder / name}: tensor {tensor!r} is not in the index; get the model again")
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return Weights(files, where)


def _inside(folder: Path, name: str) -> Path:
    """The shard `name` of `folder`. Raises ArtifactError (77) if that is not a file in the folder itself.

    Links are followed inside the folder, and to `../../blobs`, where the hub's cache keeps what its snapshots link to.
    """
    path = folder / name
    if not name or Path(name).name != name or "\0" in name:
        raise ArtifactError(f"{folder / INDEX}: shard {name!r} lies outside the folder; refuse it", REFUSED)
    if path.is_symlink():
        target = path.resolve()
        if not any(target.is_relative_to(root.resolve()) for root in (folder, folder.parent.parent / "blobs")):
            raise ArtifactError(f"{path}: a link out of the folder, to {target}; copy the file in", REFUSED)
    return path


def shard_index(shards: Mapping[str, Iterable[tuple[str, int]]]) -> bytes:
    """The index file of shards: file name -> (tensor, bytes) of each."""
    where = {tensor: name for name, tensors in shards.items() for tensor, _ in tensors}
    total = sum(num_bytes for tensors in shards.values() for _, num_bytes in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
