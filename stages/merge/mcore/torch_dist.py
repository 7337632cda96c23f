"""Checkpoints in the format of torch.distributed.checkpoint, as Megatron-Core saves them (`torch_dist`).

`.metadata` is a pickle that maps each tensor's name to its whole shape and to the parts it lies in; each part is a
tensor as torch.save writes it, at an offset of a `.distcp` file. The pickle may come from a stranger: only the classes
of that one format are let in, and parts are read with `weights_only`. One part is in memory at a time.
"""

import io
import math
import pickle
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata, planner

from postmill.io.errors import BAD_DATA, MISMATCH, REFUSED, ArtifactError
from postmill.io.json_file import write_json
from postmill.io.mcore_folder import COMMON, FORMAT, INDEX

_FILE_BYTES = 5_000_000_000


class _Inert:
    """Stands for classes of Megatron whose content nobody reads here."""

    state_dict_metadata: dict[str, Any]
    storage_data: dict[Any, Any]

    def __init__(self, *_: Any) -> None: ...


def _allowed() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        (module.__name__, name): getattr(module, name)
        for module, names in (
            (
                metadata,
                "BytesStorageMetadata ChunkStorageMetadata Metadata MetadataIndex StorageMeta TensorProperties"
                " TensorStorageMetadata _MEM_FORMAT_ENCODING",
            ),
            (filesystem, "_StorageInfo"),
            (planner, "SavePlan TensorWriteData WriteItem WriteItemType"),
        )
        for name in names.split()
    }
    allowed |= {("torch", str(d).removeprefix("torch.")): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
    allowed |= {("torch", "Size"): torch.Size, ("collections", "OrderedDict"): dict}
    allowed["torch.serialization", "_get_layout"] = lambda name: torch.strided
    ours = "megatron.core.dist_checkpointing.strategies.torch"
    return allowed | {(ours, "MCoreMetadata"): _Inert, (ours, "MCoreSavePlan"): _Inert}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], place: Path) -> None:
        super().__init__(file)
        self._place, self._table = place, _allowed()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._table:
            raise ArtifactError(
                f"{self._place}: names {module}.{name}, which such a file has no use for; it may run code, refuse it",
                REFUSED,
            )
        return self._table[module, name]


class Part(NamedTuple):
    """A block of a tensor: where in the whole, and where on disk."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


class Stored(NamedTuple):
    """A tensor of a checkpoint."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: list[Part]


class Checkpoint:
    """A checkpoint open for reading: `tensors` by name; what is no tensor is left out.

    Raises ArtifactError: 65 if `.metadata` cannot be read, 77 if it names what does not belong there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors = _read_index(folder / INDEX)
        self._last: tuple[Part, Tensor] | None = None

    def read(self, name: str, at: tuple[int, ...] = ()) -> Tensor:
        """Tensor `name`, or what it has at the leading indices `at`, as a tensor of its own.

        Raises ArtifactError (65) if parts are damaged or missing.
        """
        stored, depth = self.tensors[name], len(at)
        whole = torch.empty(stored.shape[depth:], dtype=stored.dtype)
        num_filled = 0
        for part in stored.parts:
            within = [place - first for place, first in zip(at, part.offsets, strict=False)]
            if any(not 0 <= w < size for w, size in zip(within, part.sizes, strict=False)):
                continue
            block = self._load(name, part)[tuple(within)]
            target = whole
            for dim, (first, size) in enumerate(zip(part.offsets[depth:], part.sizes[depth:], strict=True)):
                target = target.narrow(dim, first, size)
            target.copy_(block)
            num_filled += block.numel()
        if num_filled != whole.numel():
            raise self._damaged(name, f"{num_filled} of its {whole.numel()} numbers are there")
        return whole

    def _load(self, name: str, part: Part) -> Tensor:
        if self._last is None or self._last[0] != part:
            self._last = None
            path = self.folder / part.file
            try:
                with path.open("rb") as file:
                    file.seek(part.start)
                    tensor = torch.load(io.BytesIO(file.read(part.length)), map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                raise self._damaged(name, f"{part.file}: {str(error).splitlines()[0][:100]}") from None
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != part.sizes:
                raise self._damaged(name, f"{part.file}: a part is no tensor of shape {list(part.sizes)}")
            self._last = part, tensor
        return self._last[1]

    def _damaged(self, name: str, what: str) -> ArtifactError:
        return ArtifactError(f"{self.folder}: {name}: {what}; the checkpoint is damaged, get it again", BAD_DATA)


def _read_index(place: Path) -> dict[str, Stored]:
    try:
        with place.open("rb") as file:
            index = _Unpickler(file, place).load()
        where = {(i.fqn, tuple(i.offset or ())): info for i, info in index.storage_data.items()}
        return {
            name: Stored(
                tuple(entry.size),
                entry.properties.dtype,
                [_part(place, where[name, tuple(c.offsets)], c) for c in entry.chunks],
            )
            for name, entry in index.state_dict_metadata.items()
            if isinstance(entry, metadata.TensorStorageMetadata)
        }
    except ArtifactError:
        raise
    except Exception as error:  # whatever bytes of a stranger make of an unpickler
        raise ArtifactError(f"{place}: cannot be read ({type(error).__name__}: {error}); get it again") from None


def _part(place: Path, info: Any, chunk: Any) -> Part:
    name = str(info.relative_path)
    if Path(name).name != name or not name:
        raise ArtifactError(f"{place}: part {name!r} lies outside the folder; refuse it", REFUSED)
    return Part(tuple(chunk.offsets), tuple(chunk.sizes), name, int(info.offset), int(info.length))


class Writer:
    """Writes a checkpoint part by part; the folder must exist. Closing writes the index."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._number, self._file = folder, -1, None
        self._entries: dict[str, Any] = {}
        self._storage: dict[metadata.MetadataIndex, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if error is None:
            self._write_index()

    _file: IO[bytes] | None

    def add(self, name: str, counts: tuple[int, ...], at: tuple[int, ...], tensor: Tensor) -> None:
        """`tensor` is what the tensor `name`, of shape (*counts, *tensor.shape), has at the leading indices `at`."""
        offsets = torch.Size((*at, *(0 for _ in tensor.shape)))
        block = tensor.contiguous().view(*(1 for _ in at), *tensor.shape)
        entry = self._entries.get(name)
        if entry is None:
            properties = metadata.TensorProperties.create_from_tensor(block)
            entry = metadata.TensorStorageMetadata(properties, torch.Size((*counts, *tensor.shape)), [])
            self._entries[name] = entry
        assert entry.size == torch.Size((*counts, *tensor.shape))
        if entry.properties.dtype != tensor.dtype:
            raise ArtifactError(f"{name}: layers are stored in several dtypes; save them in one", MISMATCH)
        file = self._open()
        start = file.tell()
        torch.save(block, file)
        index = metadata.MetadataIndex(name, offsets, len(entry.chunks))
        entry.chunks.append(metadata.ChunkStorageMetadata(offsets, torch.Size(block.shape)))
        self._storage[index] = filesystem._StorageInfo(self._name(), start, file.tell() - start)

    def add_empty(self, name: str, counts: tuple[int, ...], at: tuple[int, ...]) -> None:
        """An object that Megatron asks for and that holds nothing: the state of a layer's FP8 scales."""
        place, size = (".".join(map(str, numbers)) for numbers in (at, counts))
        name = f"{name}/shard_{place}_{size}"
        file = self._open()
        start = file.tell()
        torch.save([None], file)  # a list of what each rank kept
        self._entries[name] = metadata.BytesStorageMetadata()
        self._storage[metadata.MetadataIndex(name)] = filesystem._StorageInfo(self._name(), start, file.tell() - start)

    def _name(self) -> str:
        return f"__0_{self._number}.distcp"

    def _open(self) -> IO[bytes]:
        if self._file is None or self._file.tell() > _FILE_BYTES:
            if self._file is not None:
                self._file.close()
            self._number += 1
            self._file = (self._folder / self._name()).open("wb")
        return self._file

    def _write_index(self) -> None:
        for name, entry in self._entries.items():
            if isinstance(entry, metadata.BytesStorageMetadata):
                continue
            num_elements = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
            assert num_elements == math.prod(entry.size), name
        index = metadata.Metadata(
            self._entries, planner_data=None, storage_data=self._storage, storage_meta=metadata.StorageMeta()
        )
        with (self._folder / INDEX).open("wb") as file:
            pickle.dump(index, file)
        torch.save({"checkpoint_version": 3.0, "iteration": 0}, self._folder / COMMON)
        write_json(
            self._folder / FORMAT,
            {
                "sharded_backend": "torch_dist",
                "sharded_backend_version": 1,
                "common_backend": "torch",
                "common_backend_version": 1,
            },
        )
