"""Pixtral, and Mistral's models with its tower: cells that cover the picture, a mark at each row's end."""

from typing import Any

from postmill.stages.shared.media.processor import Processor


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_pixtral.py, and `get_resize_output_image_size` of its image processor."""
    token = processor.token("image_token", "[IMG]")
    row_end = processor.token("image_break_token", "[IMG_BREAK]")
    end = processor.token("image_end_token", "[IMG_END]")
    rule = {
        "kind": "cover",
        "cell": _cell(processor),
        "merge": _merge(processor),
        "longest_edge": processor.side("size", 1024),
    }
    image = {"placeholder": token, "feature": token, "rows": {"row_end": row_end, "end": end}, "rule": rule}
    return {"marks": [row_end, end], "image": image}


def image_options(processor: Processor) -> dict[str, Any]:
    """Its image processor alone would round sides to patches; it is told the size of a cell."""
    side = _cell(processor)
    return {"patch_size": {"height": side, "width": side}}


def _merge(processor: Processor) -> int:
    """Patches of a cell's side."""
    return int(processor.own.get("spatial_merge_size", 1))


def _cell(processor: Processor) -> int:
    """Pixels of a cell's side."""
    return int(processor.own.get("patch_size", 16)) * _merge(processor)
