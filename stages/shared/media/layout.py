"""What a model's config says of rows with pictures: how tokens are counted, and which see each other both ways."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from postmill.io.json_file import load_json
from postmill.io.pictures import Picture
from postmill.stages.shared.attention import Blocks
from postmill.stages.shared.media.positions import mrope_positions

_PREFIX_MODELS = ("paligemma",)
"""The whole prompt is seen both ways."""
_BLOCK_MODELS = ("gemma3",)
"""The features of a picture see each other."""
_UNUSED = ("num_patches", "num_crops", "rows", "cols")
"""What processors make for themselves and models do not take."""


class RowsLayout(msgspec.Struct, frozen=True):
    """Of one model."""

    merge: int
    """Patches of a feature's side, for m-rope; 0 for models that count tokens."""
    both_ways: str
    """`prompt`, `picture` or nothing."""

    @classmethod
    def of(cls, folder: Path) -> "RowsLayout":
        """From the model's config.json."""
        config = load_json(folder / "config.json")
        text = config.get("text_config") or config
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        merge = (config.get("vision_config") or {}).get("spatial_merge_size", 2) if "mrope_section" in rope else 0
        kind = str(config.get("model_type"))
        both = "prompt" if kind in _PREFIX_MODELS else "picture" if kind in _BLOCK_MODELS else ""
        return cls(merge, both)

    def tower_inputs(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of what the processor makes, that which the model takes."""
        return {name: tensor for name, tensor in made.items() if name not in _UNUSED}

    def positions(self, pictures: Sequence[Sequence[Picture]], starts: Sequence[int]) -> Tensor | None:
        """[3, 1, T] m-rope positions, from 0 in each row; None for models that count tokens."""
        if not self.merge:
            return None
        lengths = np.diff(np.asarray(starts))
        rows = [mrope_positions(int(n), row, self.merge) for n, row in zip(lengths, pictures, strict=True)]
        return torch.from_numpy(np.concatenate(rows, axis=1))[:, None]

    def blocks(
        self, pictures: Sequence[Sequence[Picture]], starts: Sequence[int], answers: Sequence[int]
    ) -> Blocks | None:
        """What sees each other both ways; None for models where nothing does."""
        if not self.both_ways:
            return None
        found = torch.full((starts[-1],), -1)
        number = 0
        for row, start, answer in zip(pictures, starts, answers, strict=False):
            if self.both_ways == "prompt":
                found[start : start + answer] = number
                number += 1
                continue
            for picture in row:
                found[start + picture.start : start + picture.end] = number
                number += 1
        return Blocks(found, self.both_ways == "prompt")


def features_of(pooled: Any, features: Sequence[int], which: Sequence[int]) -> list[Tensor]:
    """The features of each picture of the rows, [F, H], from what the tower gave for each distinct one.

    pooled: a tensor for each picture, or one of all of them. Raises ValueError where a picture has another number of
    features than tokens.
    """
    lengths = [0] * (max(which) + 1)
    for index, length in zip(which, features, strict=True):
        lengths[index] = length
    if isinstance(pooled, Tensor):
        flat = pooled.reshape(-1, pooled.shape[-1])
        if len(flat) != sum(lengths):
            raise ValueError(f"the tower gives {len(flat)} features, the pictures have {sum(lengths)} tokens")
        found = list(torch.split(flat, lengths))
    else:
        flat = torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pooled])
        sizes = [piece.shape[:-1].numel() for piece in pooled]
        if (len(pooled) == len(lengths) and sizes != lengths) or len(flat) != sum(lengths):
            raise ValueError(f"the tower gives {sizes} features, the pictures have {lengths} tokens")
        found = list(torch.split(flat, lengths))
    return [found[index] for index in which]
