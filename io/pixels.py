"""Pictures as the processor of a model makes them, by the digest of the file: written once, read as often as needed.

Processors make 32-bit numbers out of 256 shades a channel, and for video models write each picture twice. What is kept
are the shades and what each of them becomes, if that gives every number back bit for bit; otherwise the numbers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.manifest import load_artifact
from postmill.io.media import Medium
from postmill.io.schemas import PIXELS_V1

PIXELS = "pixels.arrow"
SHADES = 256
Tensors = dict[str, NDArray[Any]]
"""What a processor makes of a picture, by the names that models give it."""


class Shading(NamedTuple):
    """How a processor makes numbers of shades: `(shade * factor - mean) / std` for each of C channels."""

    factor: float
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    frames: int
    """How often each picture stands in a patch; 1 where nothing is cut into patches."""


def encode(tensor: NDArray[Any], shading: Shading | None) -> dict[str, Any]:
    """A tensor as a member of the column `tensors`."""
    member = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "frames": 0, "table": None}
    shaded = _shades(tensor, shading) if shading and tensor.dtype == np.float32 else None
    if shaded is None:
        is_one = tensor.dtype.kind in "iub" and tensor.size > 1 and bool((tensor == tensor.flat[0]).all())
        # a mask that hides nothing is the largest tensor of some processors
        return member | {"data": (tensor.flat[0] if is_one else np.ascontiguousarray(tensor)).tobytes()}
    codes_NCR, table_CS, frames = shaded
    return member | {"frames": frames, "table": table_CS.tobytes(), "data": codes_NCR.tobytes()}


def decode(member: dict[str, Any]) -> NDArray[Any]:
    """The tensor, every bit of it."""
    shape = member["shape"]
    if not member["frames"]:
        values = np.frombuffer(member["data"], member["dtype"])
        return np.full(shape, values[0]) if values.size == 1 else values.reshape(shape).copy()
    table_CS = np.frombuffer(member["table"], np.float32).reshape(-1, SHADES)
    num_channels, frames = len(table_CS), member["frames"]
    codes = np.frombuffer(member["data"], np.uint8)
    codes_NCR = codes.reshape(_leading(shape, num_channels), num_channels, -1)
    out_NCTR = np.empty((*codes_NCR.shape[:2], frames, codes_NCR.shape[2]), np.float32)
    for channel in range(num_channels):
        out_NCTR[:, channel, 0] = table_CS[channel][codes_NCR[:, channel]]
    out_NCTR[:, :, 1:] = out_NCTR[:, :, :1]
    return out_NCTR.reshape(shape)


def _leading(shape: Sequence[int], num_channels: int) -> int:
    """How many patches or tiles a tensor of this shape has."""
    return int(shape[0] if len(shape) == 2 else np.prod(shape[: len(shape) - 3]))


def _shades(tensor: NDArray[np.float32], shading: Shading) -> tuple[NDArray[np.uint8], NDArray[np.float32], int] | None:
    """Shades [N, C, R], what each becomes [C, 256], and how often each stands there; None if that is not all of it."""
    num_channels, shape = len(shading.mean_C), tensor.shape
    frames = shading.frames if tensor.ndim == 2 else 1
    if tensor.ndim != 2 and (tensor.ndim < 4 or shape[-3] != num_channels):
        return None
    if tensor.size == 0 or (tensor.ndim == 2 and shape[1] % (num_channels * frames)):
        return None
    whole_NCTR = np.ascontiguousarray(tensor).reshape(_leading(shape, num_channels), num_channels, frames, -1)
    once_NCR = whole_NCTR[:, :, 0]
    codes_NCR = np.empty(once_NCR.shape, np.uint8)
    table_CS = np.zeros((num_channels, SHADES), np.float32)
    for channel, (mean, std) in enumerate(zip(shading.mean_C, shading.std_C, strict=True)):
        values_NR = once_NCR[:, channel]
        shades_NR = np.rint((values_NR * np.float32(std) + np.float32(mean)) / np.float32(shading.factor))
        codes_NCR[:, channel] = np.clip(np.nan_to_num(shades_NR), 0, SHADES - 1)
        table_CS[channel][codes_NCR[:, channel]] = values_NR
        # compared as bits: -0.0 is another number than 0.0
        if not np.array_equal(_bits(table_CS[channel][codes_NCR[:, channel]]), _bits(values_NR)):
            return None
    if any(not np.array_equal(_bits(whole_NCTR[:, :, frame]), _bits(once_NCR)) for frame in range(1, frames)):
        return None
    return codes_NCR, table_CS, frames


def _bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.ascontiguousarray(values).view(np.int32)


def to_batch(items: Sequence[tuple[Medium, Tensors]], shading: dict[str, Shading | None]) -> pa.RecordBatch:
    """Pictures with what was made of them. shading: by the kind of a medium."""
    rows = [
        {
            "digest": medium.digest,
            "kind": medium.kind,
            "tensors": [{"name": name} | encode(tensor, shading[medium.kind]) for name, tensor in made.items()],
        }
        for medium, made in items
    ]
    return pa.RecordBatch.from_pylist(rows, PIXELS_V1)


class PixelsReader:
    """Pictures of artifacts of the kind `pixels`. Their tables are mapped: memory is that of what is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises ArtifactError as `load_artifact`, and (78) where they were made for other processors."""
        artifacts = [load_artifact(path, ("pixels",)) for path in paths]
        self.processors = {str(artifact.manifest.digests.get("processor")) for artifact in artifacts}
        if len(self.processors) > 1:
            raise ArtifactError("--pixels: were made by different processors; make them again with one", MISMATCH)
        self._batches: list[pa.RecordBatch] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        for artifact in artifacts:
            for batch in _mapped(artifact.file(PIXELS)):
                for row, digest in enumerate(batch.column("digest").to_pylist()):
                    self._places.setdefault(digest, (len(self._batches), row))
                self._batches.append(batch)

    def __len__(self) -> int:
        """How many pictures there are."""
        return len(self._places)

    def tensors(self, medium: Medium) -> Tensors:
        """What the processor made of a picture. Raises ArtifactError (78) for one that is not there."""
        place = self._places.get(medium.digest)
        if place is None:
            message = f"{medium.place}: is not among the {len(self)} pictures of --pixels; make them of the same tokens"
            raise ArtifactError(message, MISMATCH)
        number, row = place
        members = self._batches[number].column("tensors")[row]
        return {member["name"].as_py(): decode(_plain(member)) for member in members}


def _plain(member: pa.StructScalar) -> dict[str, Any]:
    """A member without a copy of its bytes."""
    small = {name: member[name].as_py() for name in ("dtype", "shape", "frames")}
    return small | {name: member[name].as_buffer() for name in ("table", "data")}


def _mapped(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as data:
        table = pa.ipc.open_file(data)
        for number in range(table.num_record_batches):
            yield table.get_batch(number)
