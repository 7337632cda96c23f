"""Quantized layers as GPTQ and AWQ folders hold them, as codes on our grid.

Both keep `qweight` and `qzeros` as words of 32 bits, `scales` by group, inputs before outputs. Letters: N outputs, K
inputs, G groups.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.safetensors_file import Weights
from postmill.kernels.quantize.grid import Encoded
from postmill.kernels.quantize.packing import AWQ_ORDER, unpack_rows
from postmill.stages.shared.quantized_weights import read_tensor


class Foreign(NamedTuple):
    """How the layers of a folder are stored."""

    method: str
    """gptq or awq."""
    bits: int
    zero_offset: int
    """Added to stored zero points: GPTQ's first layout keeps one less."""


class Layer(NamedTuple):
    """One weight. order_K: the column of the model that each column of codes is of; None where they lie in order."""

    encoded: Encoded
    order_K: Tensor | None


def read_method(quantization: dict[str, Any]) -> Foreign | None:
    """The layout that a config.json names, if it is read here."""
    method, bits = quantization.get("quant_method"), quantization.get("bits")
    if method == "gptq" and bits in (2, 4, 8):
        layout = quantization.get("checkpoint_format", "gptq")
        return Foreign("gptq", bits, 1 if layout == "gptq" else 0) if layout in ("gptq", "gptq_v2") else None
    if method == "awq" and bits == 4 and quantization.get("version", "gemm") in ("gemm", "GEMM"):
        return Foreign("awq", 4, 0)
    return None


def read_layer(weights: Weights, module: str, form: Foreign) -> Layer:
    """The layer `module`. Raises ArtifactError (65) if its parts do not fit together."""
    words = read_tensor(weights, f"{module}.qweight")
    scale_NG = read_tensor(weights, f"{module}.scales").T.contiguous()
    num_out, num_groups = scale_NG.shape
    half, per_word = 1 << (form.bits - 1), 32 // form.bits
    order = AWQ_ORDER if form.method == "awq" else ()
    fits = words.shape[1] * per_word == num_out if form.method == "awq" else words.shape[1] == num_out
    if not fits:
        raise ArtifactError(
            f"{weights.file_of(f'{module}.qweight').path}: {module} has {list(words.shape)} words and scales for"
            f" {num_out} outputs; they do not fit",
            BAD_DATA,
        )
    if form.method == "awq":  # words run along the outputs
        codes_NK = unpack_rows(words, form.bits, num_out, order).T.contiguous()
    else:
        codes_NK = unpack_rows(words.T.contiguous(), form.bits, words.shape[0] * per_word)
    stored_GN = unpack_rows(read_tensor(weights, f"{module}.qzeros"), form.bits, num_out, order)
    # counted from zero and modulo the range: a zero point of 0, less one, is stored as the highest code
    zero_NG = ((stored_GN.T.int() + half + form.zero_offset) % (2 * half) - half).to(torch.int8).contiguous()
    place = f"{module}.g_idx"
    if place not in weights.where:
        return Layer(Encoded(codes_NK, scale_NG, zero_NG), None)
    group_K = read_tensor(weights, place).long()
    order_K = group_K.argsort(stable=True)
    counts = torch.bincount(group_K, minlength=num_groups)
    if int(counts.min()) != int(counts.max()):
        raise ArtifactError(
            f"{weights.file_of(place).path}: groups of {module} hold {int(counts.min())} to {int(counts.max())}"
            " columns, expected as many in each",
            BAD_DATA,
        )
    in_order = bool((order_K == torch.arange(len(order_K))).all())
    return Layer(Encoded(codes_NK[:, order_K], scale_NG, zero_NG), None if in_order else order_K)
