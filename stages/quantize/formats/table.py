"""The layouts there are. Each is a module with `layout`, `tensors` and `quantization_config`."""

from typing import Any

import torch

from postmill.stages.quantize.formats import awq, compressed_tensors, gptq

FORMATS: dict[str, Any] = {"compressed-tensors": compressed_tensors, "gptq": gptq, "awq": awq}


def scale_dtype(layout: str, stored: torch.dtype) -> torch.dtype:
    """In what scales are stored, for a weight that was stored in such a dtype."""
    return stored if layout == "compressed-tensors" else torch.float16
