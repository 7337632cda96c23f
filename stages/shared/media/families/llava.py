"""LLaVA, LLaVA-NeXT and LLaVA-OneVision."""

from typing import Any

from postmill.stages.shared.media.processor import Processor


def _extra(processor: Processor) -> int:
    """Tokens of a picture beside its cells: the tower's class token, which most models drop again."""
    dropped = processor.own.get("vision_feature_select_strategy", "default") == "default"
    return int(processor.own.get("num_additional_image_tokens") or 0) - int(dropped)


def family(processor: Processor) -> dict[str, Any]:
    """Every picture is cropped to one square."""
    token = processor.token("image_token", "<image>")
    side = processor.side("crop_size") if processor.image.get("do_center_crop", True) else processor.side()
    patches = (side // processor.number("patch_size")) ** 2
    rule = {"kind": "fixed", "features": patches + _extra(processor), "patches": patches}
    return {"image": {"placeholder": token, "feature": token, "rule": rule}}


def next_family(processor: Processor) -> dict[str, Any]:
    """Tiles of the best of a list of sizes, and the whole picture. Source: processing_llava_next.py."""
    token = processor.token("image_token", "<image>")
    side = processor.side("crop_size") if processor.image.get("do_center_crop", True) else processor.side()
    rule = {
        "kind": "pinpoints",
        "side": side,
        "cells": side // processor.number("patch_size"),
        "sizes": processor.image["image_grid_pinpoints"],
        "extra": _extra(processor),
    }
    return {"image": {"placeholder": token, "feature": token, "rule": rule}}


def onevision(processor: Processor) -> dict[str, Any]:
    """As LLaVA-NeXT, thinned out above a number of tiles; several pictures of a row are not cut.

    Source: processing_llava_onevision.py.
    """
    token = processor.token("image_token", "<image>")
    cells = int(processor.number("num_image_tokens") ** 0.5)
    full = processor.own.get("vision_feature_select_strategy") == "full"
    most = str(processor.own.get("vision_aspect_ratio", "anyres_max_9"))
    rule = {
        "kind": "pinpoints",
        "side": processor.side(),
        "cells": cells,
        "sizes": processor.image["image_grid_pinpoints"],
        "most_tiles": int(most.removeprefix("anyres_max_")),
        "alone_only": True,
        "extra": 0 if full else -1,
    }
    video = processor.token("video_token", "<video>")
    return {"marks": [video], "image": {"placeholder": token, "feature": token, "rule": rule}}
