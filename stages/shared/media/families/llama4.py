"""Llama 4: tiles of the canvas that fits best with marks between them, and the whole picture."""

from typing import Any

from postmill.stages.shared.media.processor import Processor

MARKS = ("<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
"""Its processor writes these, whatever its parameters say."""


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_llama4.py, and `get_best_fit` of its image processor."""
    start, end, between, row_end = MARKS
    token = processor.token("image_token", "<|image|>")
    side = processor.side("size", 336)
    patches = (side // int(processor.own.get("patch_size", 14))) ** 2
    ratio = float(processor.own.get("pixel_shuffle_ratio", 0.5))
    rule = {
        "kind": "fit",
        "tile": side,
        "max_tiles": processor.number("max_patches", 16),
        "features": patches // round(1 / ratio**2),
        "patches": patches,
        "largest": bool(processor.image.get("resize_to_max_canvas", False)),
    }
    tiles = {
        "tile": "",
        "between": between,
        "row_end": row_end,
        "whole": "<|image|>",
        "alone": "<|image|>",
        "end": end,
    }
    image = {"placeholder": token, "feature": "<|patch|>", "before": start, "tiles": tiles, "rule": rule}
    return {"marks": list(MARKS), "image": image}
