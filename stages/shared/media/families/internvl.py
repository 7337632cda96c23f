"""InternVL3: a grid of tiles and the whole picture, between two marks."""

from typing import Any

from postmill.stages.shared.media.processor import Processor


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_internvl.py, and `get_optimal_tiled_canvas` of its image processor."""
    token = processor.token("context_image_token", "<IMG_CONTEXT>")
    side, features = processor.side(), processor.number("image_seq_length", 256)
    crop = processor.image.get("crop_to_patches", False)
    rule: dict[str, Any] = {"kind": "fixed", "features": features, "patches": 4 * features}
    if crop:
        rule = {
            "kind": "canvas",
            "tile": side,
            "min_tiles": processor.number("min_patches", 1),
            "max_tiles": processor.number("max_patches", 12),
            "features": features,
            "patches": 4 * features,
        }
    before, after = processor.token("start_image_token", "<img>"), processor.token("end_image_token", "</img>")
    video = processor.token("video_token", "<video>")
    image = {"placeholder": token, "feature": token, "before": before, "after": after, "rule": rule}
    boxes = {
        "space": "norm1000",
        "bbox": "<box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
        "point": "<box>[[{x1}, {y1}]]</box>",
        "name": "<ref>{name}</ref>",
    }
    return {"marks": [before, after, video], "image": image, "boxes": boxes}
