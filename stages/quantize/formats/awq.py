"""The layout of AutoAWQ's `gemm` kernels: words run along the outputs, eight of them in an order of their own."""

from typing import Any

import torch
from torch import Tensor

from postmill.kernels.quantize.grid import Encoded
from postmill.kernels.quantize.packing import AWQ_ORDER, pack_rows
from postmill.stages.quantize.formats.compressed_tensors import Layout
from postmill.stages.quantize.plan import Plan, Target


def layout(module: str, target: Target, shape: tuple[int, int], dtype: str) -> Layout:
    """Tensors of one weight: name -> (dtype, shape). Scales are float16, whatever `dtype` is."""
    rows, columns = shape
    groups = columns // target.form.columns(columns)
    return {
        f"{module}.qweight": ("I32", (columns, rows // 8)),
        f"{module}.qzeros": ("I32", (groups, rows // 8)),
        f"{module}.scales": ("F16", (groups, rows)),
    }


def tensors(module: str, target: Target, encoded: Encoded) -> dict[str, Tensor]:
    """The same tensors, filled."""
    zero = torch.zeros(encoded.scale.shape, dtype=torch.int8) if encoded.zero is None else encoded.zero
    return {
        f"{module}.qweight": pack_rows(encoded.codes.T, 4, AWQ_ORDER),
        f"{module}.qzeros": pack_rows(zero.T, 4, AWQ_ORDER),
        f"{module}.scales": encoded.scale.half().T,
    }


def quantization_config(plan: Plan) -> dict[str, Any]:
    """What config.json says of the weights."""
    form = next(iter(plan.targets.values())).form
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": form.group or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": plan.kept,
    }
