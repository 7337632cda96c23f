"""From pictures to what a vision tower reads, by the image processor of the model's folder.

A picture is decoded, turned upright and processed alone, so what it becomes depends on its bytes and the processor.
What was made of it lately is kept by its digest. Tensors are those that transformers makes of the same file.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from postmill.io.packed import TokenRows
from postmill.io.pictures import Picture
from postmill.stages.shared import hf
from postmill.stages.shared.attention import Blocks
from postmill.stages.shared.media.decode import decode
from postmill.stages.shared.media.layout import RowsLayout

CACHE_BYTES = 1 << 30


class Media(NamedTuple):
    """The pictures of a batch, as the model takes them."""

    inputs: dict[str, Tensor]
    """What the tower reads: each picture once."""
    lengths_D: tuple[int, ...]
    """Features of each picture that the tower reads."""
    features_N: tuple[int, ...]
    """Features of each of the N pictures of the rows, in their order."""
    which_N: tuple[int, ...]
    """Which of the tower's pictures each is."""
    position_ids_31T: Tensor | None
    """int64 m-rope positions; None for models that count tokens."""
    blocks: Blocks | None
    """Which tokens see each other both ways."""

    def to(self, device: torch.device) -> "Media":
        """The same on `device`."""
        positions = self.position_ids_31T
        if positions is not None:
            positions = positions.to(device, non_blocking=True)
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        blocks = self.blocks and self.blocks._replace(number_T=self.blocks.number_T.to(device, non_blocking=True))
        return self._replace(inputs=inputs, blocks=blocks, position_ids_31T=positions)


class Pixels:
    """Makes `Media` of rows' pictures."""

    def __init__(self, folder: Path, cache_bytes: int = CACHE_BYTES) -> None:
        """folder: the model whose processor and config decide."""
        self._processor = hf.load_image_processor(folder)
        self.layout = RowsLayout.of(folder)
        self._made: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self._bytes, self._most = 0, cache_bytes

    def of_rows(self, tokens: TokenRows, rows: NDArray[np.int64], batch: Any) -> Media | None:
        """Of the `rows` of token tables that `batch` lays end to end, see `media`."""
        return self.media(tokens.pictures(rows), batch.input_ids_1T[0], batch.row_starts, tokens.answers(rows))

    def media(
        self,
        pictures: Sequence[Sequence[Picture]],
        ids_T: Tensor,
        starts: Sequence[int],
        answers: Sequence[int],
    ) -> Media | None:
        """Of rows laid end to end, each with its pictures; None where the model needs to know of none.

        starts: where each row starts, and the end. answers: how many of each row's tokens come before its first answer.
        Raises ArtifactError (65, 66) for a picture that is not what was counted.
        """
        flat = [picture for row in pictures for picture in row]
        if not flat and self.layout.both_ways != "prompt":
            return None
        # the same picture may be cut into tiles in one row and not in another
        distinct = {(picture.digest, picture.features): picture for picture in flat}
        seen = self.layout.tower_order(list(distinct.values()))
        order = {(picture.digest, picture.features): index for index, picture in enumerate(seen)}
        inputs = join([self._tensors(picture) for picture in seen]) if seen else {}
        return Media(
            inputs=inputs | self.layout.tower_more(seen),
            lengths_D=tuple(picture.features for picture in seen),
            features_N=tuple(picture.features for picture in flat),
            which_N=tuple(order[picture.digest, picture.features] for picture in flat),
            position_ids_31T=self.layout.positions(pictures, starts) if flat else None,
            blocks=self.layout.blocks(pictures, ids_T, starts, answers),
        )

    def _tensors(self, picture: Picture) -> dict[str, Tensor]:
        """What the processor makes of a picture."""
        made = self._made.pop(picture.digest, None)
        if made is None:
            image = decode(picture.load(), picture.place)
            found = self._processor(images=[image], return_tensors="pt")
            made = {name: value for name, value in found.items() if isinstance(value, Tensor)}
            made = self.layout.tower_inputs(made)
            self._bytes += _bytes_of(made)
        self._made[picture.digest] = made
        while self._bytes > self._most and len(self._made) > 1:
            _, old = self._made.popitem(last=False)
            self._bytes -= _bytes_of(old)
        return made


def _bytes_of(made: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in made.values())


def join(made: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pictures one after another. Those of other numbers of tiles are filled up with zeros, as the processors do."""
    joined = {}
    for name, first in made[0].items():
        tensors = [one[name] for one in made]
        shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        padded = [_filled(tensor, shape) if list(tensor.shape[1:]) != shape else tensor for tensor in tensors]
        joined[name] = first if len(tensors) == 1 else torch.cat(padded)
    return joined


def _filled(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    pads = [pad for have, want in zip(tensor.shape[:0:-1], reversed(shape), strict=True) for pad in (0, want - have)]
    return F.pad(tensor, pads)
