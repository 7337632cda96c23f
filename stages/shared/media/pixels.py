"""From pictures, sounds and videos to what a model's towers read, by the processors of the model's folder.

Each is decoded and processed alone, so what it becomes depends on its bytes and the processor. What was made of it
lately is kept by its digest. Tensors are those that transformers makes of the same file.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.media import Medium
from postmill.io.packed import TokenRows
from postmill.io.pixels import PixelsReader
from postmill.stages.shared import hf
from postmill.stages.shared.attention import Blocks
from postmill.stages.shared.media.decode import decode
from postmill.stages.shared.media.families.table import processor_digest
from postmill.stages.shared.media.layout import RowsLayout
from postmill.stages.shared.media.sound import decode_sound, resample

CACHE_BYTES = 1 << 30
WORKERS = 2
"""Threads that make pictures ahead of the step that needs them."""
MOST_AHEAD = 256
"""Pictures that are made ahead and wait."""


class Seen(NamedTuple):
    """All pictures of a batch, or all sounds, or all videos."""

    inputs: dict[str, Tensor]
    """What the tower reads: each picture once."""
    lengths_D: tuple[int, ...]
    """Features of each picture that the tower reads."""
    features_N: tuple[int, ...]
    """Features of each of the N pictures of the rows, in their order."""
    which_N: tuple[int, ...]
    """Which of the tower's pictures each is."""


class Media(NamedTuple):
    """Pictures, sounds and videos of a batch, as the model takes them."""

    seen: dict[str, Seen]
    """By kind: image, audio, video. Kinds that do not occur are not there."""
    position_ids_31T: Tensor | None
    """int64 m-rope positions; None for models that count tokens."""
    blocks: Blocks | None
    """Which tokens see each other both ways."""

    def to(self, device: torch.device) -> "Media":
        """The same on `device`."""
        positions = self.position_ids_31T
        if positions is not None:
            positions = positions.to(device, non_blocking=True)
        seen = {
            kind: one._replace(inputs={name: value.to(device, non_blocking=True) for name, value in one.inputs.items()})
            for kind, one in self.seen.items()
        }
        blocks = self.blocks and self.blocks._replace(number_T=self.blocks.number_T.to(device, non_blocking=True))
        return self._replace(seen=seen, blocks=blocks, position_ids_31T=positions)


class Pixels:
    """Makes `Media` of rows' pictures."""

    def __init__(
        self, folder: Path, cache_bytes: int = CACHE_BYTES, *, num_ranks: int = 0, stored: PixelsReader | None = None
    ) -> None:
        """folder: the model whose processor and config decide. num_ranks: how many train together. Where some do, each
        batch has something for each tower, a blank picture where its rows have none: all ranks compute the same layers,
        and a step without pictures moves a tower as it does however many ranks there are. stored: where tensors are
        read instead of made; files are not opened then.

        Raises ArtifactError (78) for `stored` of another processor.
        """
        if stored is not None and stored.processors != {processor_digest(folder)}:
            message = f"{folder}: its processor is another than that of --pixels; make them with -m {folder}"
            raise ArtifactError(message, MISMATCH)
        self._folder, self._num_ranks, self._stored = folder, num_ranks, stored
        self._processors: dict[str, Any] = {}
        self.layout = RowsLayout.of(folder)
        self._made: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self._bytes, self._most = 0, cache_bytes
        self._ahead: dict[bytes, Future[dict[str, Tensor]]] = {}
        self._workers: ThreadPoolExecutor | None = None

    def expect(self, pictures: Sequence[Sequence[Medium]]) -> None:
        """Begin to make what rows need that come next, in threads beside the step at work.

        Tensors are the same wherever they are made. A fault is raised where its row's batch is asked for.
        """
        for picture in (picture for row in pictures for picture in row):
            if len(self._ahead) >= MOST_AHEAD:
                return
            if picture.digest not in self._made and picture.digest not in self._ahead:
                if self._stored is None:
                    self.processor(picture.kind)  # loaded once, by this thread
                if self._workers is None:
                    self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="pixels")
                self._ahead[picture.digest] = self._workers.submit(self._make, picture)

    def of_rows(self, tokens: TokenRows, rows: NDArray[np.int64], batch: Any) -> Media | None:
        """Of the `rows` of token tables that `batch` lays end to end, see `media`."""
        return self.media(tokens.pictures(rows), batch.input_ids_1T[0], batch.row_starts, tokens.answers(rows))

    def media(
        self,
        pictures: Sequence[Sequence[Medium]],
        ids_T: Tensor,
        starts: Sequence[int],
        answers: Sequence[int],
    ) -> Media | None:
        """Of rows laid end to end, each with its pictures; None where the model needs to know of none.

        starts: where each row starts, and the end. answers: how many of each row's tokens come before its first answer.
        Raises ArtifactError (65, 66) for a picture that is not what was counted.
        """
        flat = [picture for row in pictures for picture in row]
        if not flat and self.layout.both_ways != "prompt" and not self._num_ranks:
            return None
        kinds = dict.fromkeys(picture.kind for picture in flat)
        seen = {kind: self._seen([picture for picture in flat if picture.kind == kind]) for kind in kinds}
        if self._num_ranks:
            if "video" in kinds and self._num_ranks > 1:
                raise ConfigError("videos are trained on by one rank; start one process", USAGE)
            busy = {"image" if kind == "video" else kind for kind in kinds}
            seen |= {kind: self._blank(kind) for kind in self.layout.towers if kind not in busy}
        return Media(
            seen=seen,
            position_ids_31T=self.layout.positions(pictures, starts) if flat else None,
            blocks=self.layout.blocks(pictures, ids_T, starts, answers),
        )

    def _seen(self, flat: list[Medium]) -> Seen:
        """Of all items of one kind, in the order of their rows."""
        # the same picture may be cut into tiles in one row and not in another
        distinct = {(picture.digest, picture.features): picture for picture in flat}
        seen = self.layout.tower_order(list(distinct.values()))
        order = {(picture.digest, picture.features): index for index, picture in enumerate(seen)}
        return Seen(
            inputs=join([self._tensors(picture) for picture in seen]) | self.layout.tower_more(seen),
            lengths_D=tuple(picture.features for picture in seen),
            features_N=tuple(picture.features for picture in flat),
            which_N=tuple(order[picture.digest, picture.features] for picture in flat),
        )

    def _blank(self, kind: str) -> Seen:
        """Something small for a tower, which no token stands for."""
        if kind == "image":
            from PIL import Image

            made = self.processor(kind)(images=[Image.new("RGB", (32, 32))], return_tensors="pt")
        else:
            made = self._heard(np.zeros(self.processor(kind).sampling_rate // 10, np.float32))
        tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        more = {"batch_num_images": torch.ones(1, dtype=torch.long)} if self.layout.counts_rows else {}
        return Seen(self.layout.tower_inputs(tensors) | more, (), (), ())

    def of_prompt(self, prompt_ids: list[int], pictures: Sequence[Medium]) -> dict[str, Tensor]:
        """What transformers' own model reads of one prompt's pictures, each in its place.

        Raises ArtifactError (65, 66) for a picture that is not what was counted.
        """
        made: dict[str, Tensor] = {}
        for kind in dict.fromkeys(picture.kind for picture in pictures):
            made |= join([self._tensors(picture) for picture in pictures if picture.kind == kind])
        return made | self.layout.prompt_inputs(torch.tensor(prompt_ids), pictures)

    def _tensors(self, picture: Medium) -> dict[str, Tensor]:
        """What the processor makes of a picture."""
        made = self._made.pop(picture.digest, None)
        if made is None:
            ahead = self._ahead.pop(picture.digest, None)
            made = self._make(picture) if ahead is None else ahead.result()
            self._bytes += _bytes_of(made)
        self._made[picture.digest] = made
        while self._bytes > self._most and len(self._made) > 1:
            _, old = self._made.popitem(last=False)
            self._bytes -= _bytes_of(old)
        return made

    def _make(self, picture: Medium) -> dict[str, Tensor]:
        if self._stored is None:
            return self.layout.tower_inputs(self.processed(picture))
        stored = self._stored.tensors(picture)
        return self.layout.tower_inputs({name: torch.from_numpy(value) for name, value in stored.items()})

    def processed(self, item: Medium) -> dict[str, Tensor]:
        """What the folder's processor of its kind makes of an item. Raises ArtifactError (65, 66) as `media`.

        Llama 4's bfloat16 becomes float32, which has the same values and which NumPy knows.
        """
        made = {name: value for name, value in self._processed(item).items() if isinstance(value, Tensor)}
        return {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in made.items()}

    def _processed(self, item: Medium) -> dict[str, Any]:
        processor = self.processor(item.kind)
        if item.kind == "image":
            return dict(processor(images=[decode(item.load(), item.place)], return_tensors="pt"))
        if item.kind == "video":
            frames = [decode(data, place) for data, place in item.frames()]
            return dict(processor(videos=[frames], return_tensors="pt", do_sample_frames=False))
        samples, rate = decode_sound(item.load(), item.place)
        return self._heard(resample(samples, rate, processor.sampling_rate))

    def processor(self, kind: str) -> Any:
        """What makes tensors of items of a kind."""
        if kind not in self._processors:
            self._processors[kind] = LOADERS[kind](self._folder)
        return self._processors[kind]

    def _heard(self, samples: NDArray[np.float32]) -> dict[str, Any]:
        processor = self.processor("audio")
        found = processor(
            samples,
            sampling_rate=processor.sampling_rate,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
        )
        return {"input_features": found["input_features"], "feature_attention_mask": found["attention_mask"]}


LOADERS = {"image": hf.load_image_processor, "audio": hf.load_feature_extractor, "video": hf.load_video_processor}
"""What makes tensors of an item, by its kind."""


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
