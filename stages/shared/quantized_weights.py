"""Weights of a model folder as float32 numbers, whatever bits they are stored in.

Reads plain safetensors, and the layouts of compressed-tensors, one tensor at a time. A quantized weight tells its own
bits and groups by the shapes of its parts, so no config is needed.
"""

import torch
from torch import Tensor

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.json_file import load_json
from postmill.io.safetensors_file import Weights
from postmill.kernels.quantize.grid import BLOCK, Encoded, decode
from postmill.kernels.quantize.packing import AWQ_ORDER, unpack_fp4, unpack_rows

TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "BOOL": torch.bool,
}


def read_tensor(weights: Weights, name: str) -> Tensor:
    """A tensor as it is stored. Raises ArtifactError (65) for a dtype that is not read here."""
    entry = weights.entry(name)
    if entry.dtype not in TORCH_DTYPES:
        raise ArtifactError(f"{weights.file_of(name).path}: tensor {name} is {entry.dtype}, which is not read here")
    if not entry.num_bytes:
        return torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
    raw = weights.file_of(name).read(name)
    return torch.frombuffer(raw, dtype=TORCH_DTYPES[entry.dtype]).view(entry.shape)


def read_float32(weights: Weights, name: str) -> Tensor:
    """The numbers that tensor `name` of the model stands for. Raises ArtifactError (65, 66) if it is not there."""
    module = name.removesuffix(".weight")
    if f"{module}.weight_scale" in weights.where or f"{module}.qweight" in weights.where:
        return decode(read_encoded(weights, module))
    if name not in weights.where:
        place = next(iter(weights.files.values())).path.parent
        raise ArtifactError(f"{place}: has no tensor {name}, which the model's class expects; get the model again")
    return read_tensor(weights, name).float()


def read_encoded(weights: Weights, module: str) -> Encoded:
    """A quantized weight in its codes. Raises ArtifactError (65) if its parts do not fit together."""
    if f"{module}.qweight" in weights.where:
        return _read_words(weights, module)
    scale = read_tensor(weights, f"{module}.weight_scale")
    zero_name = f"{module}.weight_zero_point"
    packed_name = f"{module}.weight_packed"
    if packed_name in weights.where and weights.entry(packed_name).dtype == "U8":
        return _read_fp4(weights, module, scale)
    if f"{module}.weight_packed" not in weights.where:
        zero = read_tensor(weights, zero_name) if zero_name in weights.where else None
        codes = read_tensor(weights, f"{module}.weight")
        if scale.shape[0] == -(-codes.shape[0] // BLOCK) != codes.shape[0]:
            scale = scale.repeat_interleave(BLOCK, 0)[: codes.shape[0]]
        return Encoded(codes, scale, zero)
    words = read_tensor(weights, f"{module}.weight_packed")
    rows, columns = read_tensor(weights, f"{module}.weight_shape").tolist()
    bits = next((bits for bits in (2, 4, 8) if -(-columns * bits // 32) == words.shape[1]), 0)
    if not bits or words.shape[0] != rows or scale.shape[0] != rows or columns % scale.shape[1]:
        raise ArtifactError(
            f"{weights.file_of(f'{module}.weight_packed').path}: {module} has {list(words.shape)} words and"
            f" {list(scale.shape)} scales for a weight of {[rows, columns]}; they do not fit",
            BAD_DATA,
        )
    zero = None
    if zero_name in weights.where:
        zero = unpack_rows(read_tensor(weights, zero_name).T, bits, rows).T
    return Encoded(unpack_rows(words, bits, columns), scale, zero)


def _read_fp4(weights: Weights, module: str, scale: Tensor) -> Encoded:
    """A weight of NVFP4, which has one scale for all of its scales, or of MXFP4, whose scales are exponents."""
    name = f"{module}.weight_global_scale"
    if name in weights.where:
        scale = scale.float() / read_tensor(weights, name)
    else:
        scale = torch.ldexp(torch.ones(scale.shape), scale.int() - 127)
    return Encoded(unpack_fp4(read_tensor(weights, f"{module}.weight_packed")), scale, None)


def _read_words(weights: Weights, module: str) -> Encoded:
    """A weight in the layout of GPTQ, whose inputs stand in groups in order, or of AWQ, which has no `g_idx`."""
    words, zeros, scales = (read_tensor(weights, f"{module}.{part}") for part in ("qweight", "qzeros", "scales"))
    rows = scales.shape[1]
    bits = 32 * zeros.shape[1] // rows
    if f"{module}.g_idx" not in weights.where:
        codes, zero = (unpack_rows(part, bits, rows, AWQ_ORDER).T for part in (words, zeros))
        return Encoded(codes.contiguous(), scales.T.contiguous(), zero.contiguous())
    groups = read_tensor(weights, f"{module}.g_idx")
    place = weights.file_of(f"{module}.qweight").path
    if not torch.equal(groups, torch.arange(len(groups), dtype=groups.dtype) // (len(groups) // scales.shape[0])):
        raise ArtifactError(f"{place}: {module} has groups out of order (desc_act), which is not read here", BAD_DATA)
    zero = unpack_rows(zeros, bits, rows).T
    said = load_json(place.parent / "config.json").get("quantization_config") or {}
    if said.get("checkpoint_format", "gptq") == "gptq":  # the first version stores zero points less one
        zero = zero + 1
    return Encoded(unpack_rows(words.T, bits, len(groups)), scales.T.contiguous(), zero.contiguous())
