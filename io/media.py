"""Pictures, sounds and videos of rows: where their tokens lie, and their bytes: those that were counted, or nothing."""

import calendar
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from postmill.io.arrays import to_numpy
from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError, one_line
from postmill.io.manifest import SIDE_FILE, Artifact

MEDIA = "media"
"""The column of token tables."""


class Medium(NamedTuple):
    """A picture, a sound or a video of a row; see MEDIA in `io/schemas.py`."""

    kind: str
    start: int
    """Its first token in the row."""
    end: int
    features: int
    grid: tuple[int, int, int]
    patches: int
    rate: int
    digest: bytes
    reference: str | None
    folder: str | None
    content: bytes | None
    width: int = 0
    """Of the upright picture; samples of a sound."""
    height: int = 0

    @property
    def place(self) -> str:
        """What messages call it."""
        if self.reference is None:
            return f"the {_NOUNS[self.kind]} {self.digest.hex()[:12]} of the rows"
        return one_line(str(self._path(self.reference)))

    def _path(self, name: str) -> Path:
        return Path(self.folder or "") / name

    def frames(self) -> list[tuple[bytes, str]]:
        """The bytes and places of a video's frames. Raises ArtifactError as `load`."""
        paths = [self._path(name) for name in json.loads(self.reference or "[]")]
        found = [(_read(path, "video"), one_line(str(path))) for path in paths]
        if blake3(b"".join(blake3(data).digest() for data, _ in found)).digest() != self.digest:
            raise _changed(found[0][1], "video")
        return found

    def load(self) -> bytes:
        """Its bytes. Raises ArtifactError: (66) the file is gone, (65) it is not the one that was counted."""
        data = self.content
        if data is None:
            data = _read(self._path(self.reference or ""), self.kind)
        if blake3(data).digest() != self.digest:
            raise _changed(self.place, self.kind)
        return data


_NOUNS = {"image": "picture", "audio": "sound", "video": "video"}


MOST_PIXELS = 1 << 26
"""Of a picture: 8,192 by 8,192, some 200 MB once it is decoded. `MOST_PIXELS` in ext/rust/core/src/media/header.rs is
the same, and a test compares them."""
MOST_BYTES = 256 << 20
"""Of a file: what `tokenize` reads, too."""


def read_media(path: Path) -> bytes:
    """A file's bytes. Devices are not read, a pipe that nobody writes to is not waited for.

    Raises OSError (what is no file has the reason in `strerror`), and ArtifactError (65) over MOST_BYTES.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(0, "not a file", str(path))
        if about.st_size > MOST_BYTES:
            message = f"has {about.st_size} bytes, the most is {MOST_BYTES}; shrink it first"
            raise ArtifactError(f"{one_line(str(path))}: {message}", BAD_DATA)
        return file.read(MOST_BYTES)


def _read(path: Path, kind: str) -> bytes:
    try:
        return read_media(path)
    except OSError as error:
        raise ArtifactError(
            f"{one_line(str(path))}: a {_NOUNS[kind]} of the rows cannot be read ({error.strerror}); put it back, or"
            " tokenize again with --force",
            NO_INPUT,
        ) from None


def _changed(place: str, kind: str) -> ArtifactError:
    message = f"{place}: is another {_NOUNS[kind]} than when the rows were made; tokenize again with --force"
    return ArtifactError(message, BAD_DATA)


def media_of(batch: pa.RecordBatch, row: int) -> list[Medium]:
    """The pictures of a row of tokens, in its order; none in tables that were made for models of text."""
    if MEDIA not in batch.schema.names:
        return []
    column = batch.column(MEDIA)
    first, last = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    return [medium_of(item) for item in column.values.slice(first, last - first).to_pylist()]


def has_media(schema: pa.Schema) -> bool:
    """Whether tables of `schema` were made for a model that reads pictures."""
    return MEDIA in schema.names


def medium_of(item: dict[str, Any]) -> Medium:
    """A member of the column as Python has it."""
    grid = (item["grid_t"], item["grid_h"], item["grid_w"])
    plain = {name: item[name] for name in Medium._fields if name not in ("grid", "rate")}
    return Medium(grid=grid, rate=item.get("rate", 0), **plain)  # older tables have no rate


def patches_of(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Patches of all pictures of each row of tokens."""
    if MEDIA not in batch.schema.names:
        return np.zeros(batch.num_rows, np.int64)
    column = batch.column(MEDIA)
    sums = np.append(0, np.cumsum(to_numpy(column.values.field("patches")), dtype=np.int64))
    offsets = to_numpy(column.offsets)
    found: NDArray[np.int64] = sums[offsets[1:]] - sums[offsets[:-1]]
    return found


def changed_media(artifact: Artifact) -> str | None:
    """Why the media files that an artifact's rows name would make other rows today; None if they would not.

    The content key cannot cover them, since they are found while rows are read. A file whose status did not change
    since the rows were made is not read again.
    """
    since, seen = _began(artifact), set[tuple[str | None, str]]()
    for picture in media_in(artifact):
        if picture.reference is None:
            continue
        name = (picture.folder, picture.reference)
        if name in seen:
            continue
        seen.add(name)
        if not _may_have_changed(picture, since):
            continue
        try:
            picture.frames() if picture.kind == "video" else picture.load()
        except ArtifactError as error:
            return str(error).partition(";")[0]
    return None


def media_in(artifact: Artifact) -> Iterator[Medium]:
    """Those of all rows of an artifact's tables, in their order. Only their column is read."""
    for entry in artifact.manifest.files:
        if not entry.path.endswith(".arrow"):
            continue
        with pa.memory_map(str(artifact.file(entry.path))) as data:
            names = pa.ipc.open_file(data).schema.names
            if MEDIA not in names:
                continue
            table = pa.ipc.open_file(data, options=pa.ipc.IpcReadOptions(included_fields=[names.index(MEDIA)]))
            for number in range(table.num_record_batches):
                column = table.get_batch(number).column(0)
                yield from (medium_of(item) for item in column.flatten().to_pylist())


def _began(artifact: Artifact) -> float:
    """When an artifact's work began, in seconds of the epoch, a minute early for clocks that differ; 0 if unsaid."""
    try:
        side = json.loads(artifact.file(SIDE_FILE).read_bytes())
        finished = calendar.timegm(time.strptime(side["finished"], "%Y-%m-%dT%H:%M:%SZ"))
        return finished - float(side["seconds"]["total"]) - 60
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _may_have_changed(picture: Medium, since: float) -> bool:
    """Whether a file of a picture has another status than at the time `since`, or is gone."""
    assert picture.reference is not None
    names = json.loads(picture.reference) if picture.kind == "video" else [picture.reference]
    try:
        return any((Path(picture.folder or "") / name).stat().st_ctime > since for name in names)
    except OSError:
        return True
