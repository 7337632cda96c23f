"""Which type each tensor of a GGUF file gets: the mixes that `llama-quantize` makes, by the same names.

A mix like Q4_K_M keeps values and down projections of some layers in more bits. Rows that 256 does not divide get the
nearest type of 32, as there. Source: `llama_tensor_get_type_impl` of llama.cpp's src/llama-quant.cpp.
"""

import re
from typing import NamedTuple

from postmill.io.gguf_file import GGML_TYPES

FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 32,
    "q8_0": 7,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 8,
    "q5_1": 9,
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_nl": 25,
    "iq4_xs": 30,
}
"""Schemes that are GGUF's -> `general.file_type`."""
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8, "q6_k": 6, "q5_k": 5, "q5_0": 5, "q5_1": 5}
BITS |= {"q4_k": 4, "q4_0": 4, "q4_1": 4, "iq4_nl": 4, "iq4_xs": 4, "q3_k": 3, "q2_k": 2}
_SMALLER = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_SMALLER |= {"iq4_xs": "iq4_nl"}
"""What a row gets that 256 does not divide."""


class Shape(NamedTuple):
    """What the choice depends on, of the whole model."""

    num_layers: int
    queries_per_key: int
    num_experts: int
    tied: bool


def type_of(scheme: str, tensor: str, shape: tuple[int, ...], model: Shape) -> str:
    """The type of a tensor of the file, by its name there."""
    if len(shape) < 2 or tensor.endswith(("_norm.weight", "ffn_gate_inp.weight")):
        return "f32"
    if scheme in ("f32", "f16", "bf16"):
        return scheme
    return fitting(_wished(scheme, tensor, shape[-1], model), shape[-1])


def fitting(kind: str, columns: int) -> str:
    """The type, or the next one whose blocks divide a row."""
    if columns % GGML_TYPES[kind][1]:
        kind = _SMALLER.get(kind, "f16")
    return "f16" if columns % GGML_TYPES[kind][1] else kind


def _wished(scheme: str, tensor: str, columns: int, model: Shape) -> str:
    base = scheme if scheme in GGML_TYPES else scheme[:4]
    if tensor == "output.weight" or (tensor == "token_embd.weight" and model.tied):
        return "q8_0" if columns % GGML_TYPES[base][1] or base == "q8_0" else "q6_k"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor)
    if match is None:
        return base
    layer, eight = int(match[1]), model.num_experts == 8
    special = {"attn_v": _value, "ffn_down": _down, "ffn_down_exps": _down, "attn_output": _output}
    if eight and match[2] in ("attn_v", "attn_k"):
        return "q8_0"
    return special[match[2]](scheme, layer, model) or base if match[2] in special else base


def _more(layer: int, num_layers: int) -> bool:
    """The first and the last eighth, and every third layer between."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def _value(scheme: str, layer: int, model: Shape) -> str:
    shared = model.queries_per_key >= 4
    return {
        "q2_k": "q4_k" if shared else "q3_k",
        "q3_k_m": "q5_k" if layer < 2 else "q4_k",
        "q3_k_l": "q5_k",
        "iq4_nl": "q5_k" if shared else "",
        "iq4_xs": "q5_k" if shared else "",
        "q4_k_s": "q5_k" if layer < 4 else "",
        "q4_k_m": "q6_k" if _more(layer, model.num_layers) else "",
        "q5_k_m": "q6_k" if _more(layer, model.num_layers) else "",
    }.get(scheme, "")


def _down(scheme: str, layer: int, model: Shape) -> str:
    return {
        "q2_k": "q3_k",
        "q3_k_m": "q5_k" if layer < model.num_layers // 16 else "q4_k",
        "q3_k_l": "q5_k",
        "iq4_nl": "q5_k" if layer < model.num_layers // 8 else "",
        "iq4_xs": "q5_k" if layer < model.num_layers // 8 else "",
        "q4_k_s": "q5_k" if layer < model.num_layers // 8 else "",
        "q4_k_m": "q6_k" if _more(layer, model.num_layers) else "",
        "q5_k_m": "q6_k" if _more(layer, model.num_layers) else "",
    }.get(scheme, "")


def _output(scheme: str, layer: int, model: Shape) -> str:
    if model.num_experts == 8:
        few = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")
        return "q5_k" if scheme in few else ""
    return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(scheme, "")
