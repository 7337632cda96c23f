"""Gemma 3: a fixed number of tokens a picture, between two marks and blank lines."""

from typing import Any

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.media.processor import Processor


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_gemma3.py. Raises ConfigError (2) for crops ("pan and scan")."""
    if processor.image.get("do_pan_and_scan"):
        raise ConfigError(f"{processor.name}: do_pan_and_scan is not supported; set it to false", USAGE)
    opens = processor.token("boi_token", "<start_of_image>")
    closes = processor.token("eoi_token", "<end_of_image>")
    features = processor.number("image_seq_length", 256)
    image = {
        "placeholder": opens,
        "feature": processor.token("image_token", "<image_soft_token>"),
        "before": f"\n\n{opens}",
        "after": f"{closes}\n\n",
        "rule": {"kind": "fixed", "features": features, "patches": (processor.side(default=896) // 14) ** 2},
    }
    return {"marks": [closes], "image": image}
