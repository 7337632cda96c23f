"""Idefics3 and SmolVLM: rows of tiles, each with its place, and the whole picture."""

from typing import Any

from postmill.stages.shared.media.processor import Processor


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_idefics3.py and the sizes of its image processor."""
    fake = processor.token("fake_image_token", "<fake_token_around_image>")
    whole = processor.token("global_image_token", "<global-img>")
    token = processor.token("image_token", "<image>")
    tile = processor.side("max_image_size", 364)
    features = processor.number("image_seq_len", 169)
    patches = (tile // 14) ** 2
    rule = {
        "kind": "tiles",
        "tile": tile,
        "longest_edge": processor.side("size", 4 * 364),
        "features": features,
        "patches": patches,
        "split": bool(processor.image.get("do_image_splitting", True)),
    }
    tiles = {
        "tile": fake + "<row_{row}_col_{column}>",
        "row_end": "\n",
        "whole": f"\n{fake}{whole}",
        "alone": f"{fake}{whole}",
        "end": fake,
    }
    image = {"placeholder": token, "feature": token, "tiles": tiles, "rule": rule}
    return {"marks": [fake, whole], "image": image}
