"""What a model's config says of rows with pictures: how tokens are counted, and which see each other both ways."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from postmill.io.errors import INTERNAL, StageError
from postmill.io.json_file import load_json
from postmill.io.media import Medium
from postmill.stages.shared.attention import Blocks
from postmill.stages.shared.media.positions import mrope_positions, seconds_of

_PREFIX_MODELS = ("paligemma",)
"""The whole prompt is seen both ways."""
_BLOCK_MODELS = ("gemma3",)
"""The features of a picture see each other."""
_COUNTING_MODELS = ("llava_onevision",)
"""Pictures that are alone in their row are cut into tiles, others not."""
_TIMED_MODELS = ("qwen2_5_vl",)
"""Positions in a video are seconds."""
_UNTYPED_MODELS = ("qwen2_5_omni_thinker",)
"""They find what is a picture by its token, and are not told."""
_UNUSED = ("num_patches", "num_crops", "rows", "cols")
"""What processors make for themselves and models do not take."""


class RowsLayout(msgspec.Struct, frozen=True):
    """Of one model."""

    merge: int
    """Patches of a feature's side, for m-rope; 0 for models that count tokens."""
    both_ways: str
    """`prompt`, `picture` or nothing."""
    feature: int
    """The token that stands for a feature of a picture."""
    sound: int
    """The token that stands for a feature of a sound."""
    video: int
    """The token that stands for a feature of a video."""
    tokens_per_second: float
    """How far a second of a video takes time on, where positions say it; 0 where its grids are counted."""
    towers: tuple[str, ...]
    """What the model's towers read: image, audio."""
    counts_rows: bool
    """Whether the tower is told which pictures are alone in their row."""
    types_tokens: bool
    """Whether the model is told which tokens stand for pictures."""

    @classmethod
    def of(cls, folder: Path) -> "RowsLayout":
        """From the model's config.json."""
        config = load_json(folder / "config.json")
        text = config.get("text_config") or config
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        merge = (config.get("vision_config") or {}).get("spatial_merge_size", 2) if "mrope_section" in rope else 0
        kind = str(config.get("model_type"))
        both = "prompt" if kind in _PREFIX_MODELS else "picture" if kind in _BLOCK_MODELS else ""
        image, sound, video = (
            int(config.get(f"{name}_token_id", config.get(f"{name}_token_index", -1)))
            for name in ("image", "audio", "video")
        )
        vision = config.get("vision_config") or {}
        pace = float(vision.get("tokens_per_second", 4)) if kind in _TIMED_MODELS else 0.0
        names = {"image": "vision_config", "audio": "audio_config"}
        towers = tuple(tower for tower, name in names.items() if config.get(name))
        return cls(
            merge,
            both,
            image,
            sound,
            video,
            pace,
            towers,
            kind in _COUNTING_MODELS,
            bool(merge) and kind not in _UNTYPED_MODELS,
        )

    def tower_inputs(self, made: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of what the processor makes, that which the model takes."""
        return {name: tensor for name, tensor in made.items() if name not in _UNUSED}

    def positions(self, pictures: Sequence[Sequence[Medium]], starts: Sequence[int]) -> Tensor | None:
        """[3, 1, T] m-rope positions, from 0 in each row; None for models that count tokens."""
        if not self.merge:
            return None
        lengths = np.diff(np.asarray(starts))
        seen = [[picture for picture in row if picture.kind != "audio"] for row in pictures]  # sounds count on as text
        rows = [
            mrope_positions(int(n), row, self.merge, self.tokens_per_second)
            for n, row in zip(lengths, seen, strict=True)
        ]
        return torch.from_numpy(np.concatenate(rows, axis=1))[:, None]

    def prompt_inputs(self, ids_T: Tensor, pictures: Sequence[Medium]) -> dict[str, Tensor]:
        """What transformers' own forward pass is told of a prompt beside its pictures: which tokens stand for them."""
        is_feature_1T = (ids_T == self.feature).long()[None]
        found = {"mm_token_type_ids": is_feature_1T + 2 * (ids_T == self.video).long()} if self.types_tokens else {}
        seconds = [seconds_of(picture) for picture in pictures if picture.kind == "video"]
        if seconds and self.tokens_per_second:
            found["second_per_grid_ts"] = torch.tensor(seconds)
        if self.both_ways:
            found["token_type_ids"] = is_feature_1T if self.both_ways == "picture" else torch.zeros_like(is_feature_1T)
        return found | ({"batch_num_images": torch.tensor([len(pictures)])} if self.counts_rows else {})

    def tower_order(self, pictures: list[Medium]) -> list[Medium]:
        """The pictures as the tower is given them; one may be given twice."""
        if not self.counts_rows:
            return pictures
        others = [picture for picture in pictures if picture.grid[0] == 1]
        # a single one would be taken for one that is alone in its row
        others = others * 2 if len(others) == 1 else others
        return [picture for picture in pictures if picture.grid[0] != 1] + others

    def tower_more(self, pictures: list[Medium]) -> dict[str, Tensor]:
        """What the tower is given besides: how many pictures are in one row each."""
        if not self.counts_rows or not pictures:
            return {}
        num_alone = sum(picture.grid[0] != 1 for picture in pictures)
        rest = len(pictures) - num_alone
        return {"batch_num_images": torch.tensor([1] * num_alone + ([rest] if rest else []))}

    def blocks(
        self, pictures: Sequence[Sequence[Medium]], ids_T: Tensor, starts: Sequence[int], answers: Sequence[int]
    ) -> Blocks | None:
        """What sees each other both ways; None for models where nothing does."""
        if not self.both_ways:
            return None
        found_T = torch.full((starts[-1],), -1)
        number = 0
        for row, start, answer in zip(pictures, starts, answers, strict=False):
            if self.both_ways == "prompt":
                found_T[start : start + answer] = number
                number += 1
                continue
            for picture in row:
                span = slice(start + picture.start, start + picture.end)
                found_T[span] = torch.where(ids_T[span] == self.feature, number, -1)
                number += 1
        return Blocks(found_T, self.both_ways == "prompt")


def features_of(pooled: Any, media_lengths: Sequence[int], which: Sequence[int]) -> list[Tensor]:
    """The features of each picture of the rows, [F, H], from what the tower gave for each one it read.

    pooled: a tensor for each of the tower's pictures, or one of all of them. media_lengths: features of each. which:
    the tower's picture of each picture of the rows. Raises StageError (70) where the tower gives another number.
    """
    pieces = [pooled] if isinstance(pooled, Tensor) else list(pooled)
    sizes = [piece.shape[:-1].numel() for piece in pieces]
    lengths = list(media_lengths)
    if sizes != lengths if len(sizes) == len(lengths) else sum(sizes) != sum(lengths):
        raise StageError(f"the tower gives {sizes} features, the pictures have {lengths} tokens; report this", INTERNAL)
    flat = torch.cat([piece.reshape(-1, piece.shape[-1]) for piece in pieces])
    found = torch.split(flat, lengths)
    return [found[index] for index in which]
