"""The layouts of compressed-tensors, which transformers and vLLM load: pack-, int- and float-quantized, and FP4.

Names of modules are listed one by one, never matched by patterns, so that every reader quantizes what we did.
"""

from typing import Any

from torch import Tensor

from postmill.kernels.quantize.grid import BLOCK, Encoded, Form, power_of_two
from postmill.kernels.quantize.packing import pack_fp4, pack_rows
from postmill.stages.quantize.plan import Plan, Target

Layout = dict[str, tuple[str, tuple[int, ...]]]


def layout(module: str, target: Target, shape: tuple[int, int], dtype: str) -> Layout:
    """Tensors of one weight: name -> (dtype, shape). `dtype` is that of scales, as safetensors names it."""
    rows, columns = shape
    form = target.form
    groups = columns // form.columns(columns)
    if form.bits == 4 and form.floating:
        packed: Layout = {f"{module}.weight_packed": ("U8", (rows, columns // 2))}
        if form.scales == "e8m0":
            return packed | {f"{module}.weight_scale": ("U8", (rows, groups))}
        scales: Layout = {f"{module}.weight_scale": ("F8_E4M3", (rows, groups))}
        return packed | scales | {f"{module}.weight_global_scale": ("F32", (1,))}
    if form.scales == "block":
        of_blocks = ("F32", (-(-rows // BLOCK), groups))
        return {f"{module}.weight": ("F8_E4M3", shape), f"{module}.weight_scale": of_blocks}
    if target.layout != "pack-quantized":
        codes = "F8_E4M3" if form.floating else "I8"
        return {f"{module}.weight": (codes, shape), f"{module}.weight_scale": (dtype, (rows, groups))}
    per_word = 32 // form.bits
    parts: Layout = {
        f"{module}.weight_packed": ("I32", (rows, -(-columns // per_word))),
        f"{module}.weight_scale": (dtype, (rows, groups)),
        f"{module}.weight_shape": ("I64", (2,)),
    }
    if not form.symmetric:
        parts[f"{module}.weight_zero_point"] = ("I32", (-(-rows // per_word), groups))
    return parts


def tensors(module: str, target: Target, encoded: Encoded) -> dict[str, Tensor]:
    """The same tensors, filled."""
    import torch

    form = target.form
    if form.bits == 4 and form.floating:
        packed = {f"{module}.weight_packed": pack_fp4(encoded.codes)}
        if form.scales == "e8m0":
            return packed | {f"{module}.weight_scale": (torch.frexp(encoded.scale).exponent + 126).to(torch.uint8)}
        whole = power_of_two(encoded.scale.amax())
        scales = {f"{module}.weight_scale": (encoded.scale * whole).to(torch.float8_e4m3fn)}
        return packed | scales | {f"{module}.weight_global_scale": whole.view(1)}
    if form.scales == "block":
        return {f"{module}.weight": encoded.codes, f"{module}.weight_scale": encoded.scale[::BLOCK].contiguous()}
    if target.layout != "pack-quantized":
        return {f"{module}.weight": encoded.codes, f"{module}.weight_scale": encoded.scale}
    bits = target.form.bits
    parts = {
        f"{module}.weight_packed": pack_rows(encoded.codes, bits),
        f"{module}.weight_scale": encoded.scale,
        f"{module}.weight_shape": torch.tensor(encoded.codes.shape, dtype=torch.int64),
    }
    if encoded.zero is not None:
        parts[f"{module}.weight_zero_point"] = pack_rows(encoded.zero.T, bits).T.contiguous()
    return parts


def quantization_config(plan: Plan) -> dict[str, Any]:
    """What config.json says of the weights."""
    by_target: dict[Target, list[str]] = {}
    for module, target in plan.targets.items():
        by_target.setdefault(target, []).append(module)
    layouts = sorted({target.layout for target in by_target})
    groups = {
        f"group_{index}": {
            # one kind needs no list: all linear layers, but for those that are ignored
            "targets": ["Linear"] if len(by_target) == 1 else modules,
            "weights": _arguments(target.form),
            "input_activations": _activations(target),
            "output_activations": None,
            "format": target.layout,
        }
        for index, (target, modules) in enumerate(by_target.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": layouts[0] if len(layouts) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": plan.kept,
        "config_groups": groups,
    }


def _arguments(form: Form) -> dict[str, Any]:
    grouped: dict[str, Any] = {"strategy": "group", "group_size": form.group} if form.group else {"strategy": "channel"}
    if form.scales == "block":
        grouped = {"strategy": "block", "block_structure": [BLOCK, BLOCK]}
    elif form.scales == "e4m3":
        grouped |= {"strategy": "tensor_group", "scale_dtype": "torch.float8_e4m3fn"}
    elif form.scales == "e8m0":
        grouped |= {"scale_dtype": "torch.uint8"}
    return {
        "num_bits": form.bits,
        "type": "float" if form.floating else "int",
        "symmetric": form.symmetric,
        "dynamic": False,
        **grouped,
    }


def _activations(target: Target) -> dict[str, Any] | None:
    if not target.activations:
        return None
    kind = "float" if target.activations == "fp8" else "int"
    each: dict[str, Any] = {"strategy": "token"}
    if target.activation_group:
        each = {"strategy": "group", "group_size": target.activation_group}
    return {"num_bits": 8, "type": kind, "symmetric": True, "dynamic": True, **each}
