"""The pictures of rows: where their tokens lie, and their bytes, which are those that were counted or nothing."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numpy.typing import NDArray

from postmill.io.arrays import to_numpy
from postmill.io.errors import BAD_DATA, NO_INPUT, ArtifactError

MEDIA = "media"
"""The column of token tables."""


class Picture(NamedTuple):
    """A picture of a row, see MEDIA in `io/schemas.py`."""

    start: int
    """Its first token in the row."""
    end: int
    features: int
    grid: tuple[int, int, int]
    patches: int
    digest: bytes
    reference: str | None
    folder: str | None
    content: bytes | None

    @property
    def place(self) -> str:
        """What messages call it."""
        if self.reference is None:
            return f"the picture {self.digest.hex()[:12]} of the rows"
        return str(Path(self.folder or "") / self.reference)

    def load(self) -> bytes:
        """Its bytes. Raises ArtifactError: (66) the file is gone, (65) it is not the one that was counted."""
        data = self.content
        if data is None:
            try:
                data = Path(self.place).read_bytes()
            except OSError as error:
                raise ArtifactError(
                    f"{self.place}: a picture of the rows cannot be read ({error.strerror}); put it back, or tokenize"
                    " again with --force",
                    NO_INPUT,
                ) from None
        if blake3(data).digest() != self.digest:
            raise ArtifactError(
                f"{self.place}: is another picture than when the rows were made; tokenize again with --force", BAD_DATA
            )
        return data


def pictures_of(batch: pa.RecordBatch, row: int) -> list[Picture]:
    """The pictures of a row of tokens, in its order; none in tables that were made for models of text."""
    if MEDIA not in batch.schema.names:
        return []
    column = batch.column(MEDIA)
    first, last = column.offsets[row].as_py(), column.offsets[row + 1].as_py()
    return [_picture(item) for item in column.values.slice(first, last - first).to_pylist()]


def patches_of(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Patches of all pictures of each row of tokens."""
    if MEDIA not in batch.schema.names:
        return np.zeros(batch.num_rows, np.int64)
    column = batch.column(MEDIA)
    sums = np.append(0, np.cumsum(to_numpy(column.values.field("patches")), dtype=np.int64))
    offsets = to_numpy(column.offsets)
    found: NDArray[np.int64] = sums[offsets[1:]] - sums[offsets[:-1]]
    return found


def _picture(item: dict[str, Any]) -> Picture:
    grid = (item["grid_t"], item["grid_h"], item["grid_w"])
    return Picture(grid=grid, **{name: item[name] for name in Picture._fields if name != "grid"})
