"""The layout of AutoGPTQ and GPTQModel: words run down the inputs, one column of them for each output.

`qzeros` holds zero points less one in files of the first version, which every reader knows; a zero point of 0 would not
fit there, so asymmetric weights are written as the second version, which holds them as they are.
"""

import re
from typing import Any

import torch
from torch import Tensor

from postmill.kernels.quantize.grid import Encoded
from postmill.kernels.quantize.packing import pack_rows
from postmill.stages.quantize.formats.compressed_tensors import Layout
from postmill.stages.quantize.plan import Plan, Target


def layout(module: str, target: Target, shape: tuple[int, int], dtype: str) -> Layout:
    """Tensors of one weight: name -> (dtype, shape). Scales are float16, whatever `dtype` is."""
    rows, columns = shape
    per_word, groups = 32 // target.form.bits, columns // target.form.columns(columns)
    return {
        f"{module}.qweight": ("I32", (columns // per_word, rows)),
        f"{module}.qzeros": ("I32", (groups, rows // per_word)),
        f"{module}.scales": ("F16", (groups, rows)),
        f"{module}.g_idx": ("I32", (columns,)),
    }


def tensors(module: str, target: Target, encoded: Encoded) -> dict[str, Tensor]:
    """The same tensors, filled."""
    bits, columns = target.form.bits, encoded.codes.shape[1]
    zero = torch.full(encoded.scale.shape, -1, dtype=torch.int8) if encoded.zero is None else encoded.zero
    return {
        f"{module}.qweight": pack_rows(encoded.codes, bits).T,
        f"{module}.qzeros": pack_rows(zero.T, bits),
        f"{module}.scales": encoded.scale.half().T,
        f"{module}.g_idx": torch.arange(columns, dtype=torch.int32) // target.form.columns(columns),
    }


def quantization_config(plan: Plan) -> dict[str, Any]:
    """What config.json says of the weights. `dynamic` names the linear layers inside the layers that are kept."""
    form = next(iter(plan.targets.values())).form
    # of kept layers, readers expect only those to be plain that are named, or that lie outside the decoder
    kept = [module for module in plan.kept if module.partition(".")[2]]
    return {
        "quant_method": "gptq",
        "bits": form.bits,
        "group_size": form.group or -1,
        "sym": form.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq" if form.symmetric else "gptq_v2",
        "dynamic": {f"-:^{re.escape(module)}$": {} for module in kept},
    }
