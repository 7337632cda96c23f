"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and what is built like them: sizes in whole cells, one token a cell."""

from typing import Any

from postmill.stages.shared.media.boxes import plain_boxes
from postmill.stages.shared.media.processor import Processor


def family(processor: Processor, image: str = "<|image_pad|>", video: str = "<|video_pad|>") -> dict[str, Any]:
    """image, video: their tokens where the folder does not name them. Source: `smart_resize` in transformers'
    image_processing_qwen2_vl.py."""
    token, video = processor.token("image_token", image), processor.token("video_token", video)
    size = processor.image.get("size") or {}
    least = processor.image.get("min_pixels") or size.get("shortest_edge", 56 * 56)
    most = processor.image.get("max_pixels") or size.get("longest_edge", 28 * 28 * 1280)
    rule = {
        "kind": "smart",
        "patch": processor.number("patch_size", 14),
        "merge": processor.number("merge_size", 2),
        "min_pixels": least,
        "max_pixels": most,
    }
    return {"marks": [video], "image": {"placeholder": token, "feature": token, "rule": rule}}


def qwen2(processor: Processor) -> dict[str, Any]:
    """Boxes in thousandths, between marks."""
    return _with_video(processor) | {
        "boxes": {
            "space": "norm1000",
            "bbox": "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
            "point": "<|box_start|>({x1},{y1})<|box_end|>",
            "name": "<|object_ref_start|>{name}<|object_ref_end|>",
        }
    }


def qwen2_5(processor: Processor) -> dict[str, Any]:
    """Boxes in pixels of the picture that the model sees."""
    return _with_video(processor) | {"boxes": plain_boxes("resized")}


def qwen3(processor: Processor) -> dict[str, Any]:
    """Boxes in thousandths."""
    return family(processor) | {"boxes": plain_boxes("norm1000")}


def _with_video(processor: Processor) -> dict[str, Any]:
    """Qwen2-VL and Qwen2.5-VL: a video is its frames in twos, without marks of time between them.

    Source: `resize` and `patchify` of video_processing_qwen2_vl.py.
    """
    found = family(processor)
    token = processor.token("video_token", "<|video_pad|>")
    video = processor.video
    size = video.get("size") or {}
    rule = {
        "kind": "smart",
        "patch": int(video.get("patch_size", 14)),
        "merge": int(video.get("merge_size", 2)),
        "min_pixels": video.get("min_pixels") or size.get("shortest_edge", 128 * 28 * 28),
        "max_pixels": video.get("max_pixels") or size.get("longest_edge", 28 * 28 * 768),
        "frames": int(video.get("temporal_patch_size", 2)),
    }
    if video.get("do_sample_frames") or video.get("cap_pixels_per_frame"):
        return found  # which frames and pixels are kept depends on more than sizes
    return found | {"video": {"placeholder": token, "feature": token, "rule": rule}}


def glm4v(processor: Processor) -> dict[str, Any]:
    """As Qwen's, with two frames in the bounds of a picture's area, and small pictures enlarged first."""
    token = processor.token("image_token", "<|image|>")
    size = processor.image.get("size") or {}
    rule = {
        "kind": "smart",
        "patch": processor.number("patch_size", 14),
        "merge": processor.number("merge_size", 2),
        "min_pixels": size.get("shortest_edge", 112 * 112),
        "max_pixels": size.get("longest_edge", 28 * 28 * 15000),
        "frames": processor.number("temporal_patch_size", 2),
        "enlarge": True,
    }
    return {"image": {"placeholder": token, "feature": token, "rule": rule}}
