"""Quantized models as a frozen base: layouts that are known are read here, others by transformers with their package.

A layer of our folders (compressed-tensors, integers with floating activations), of GPTQ and of AWQ keeps its codes in
words and makes its weight when it computes, in the backward pass once more: memory is that of the file, and no package
is needed.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.io.safetensors_file import Weights, open_weights
from postmill.kernels.quantize.grid import Encoded, decode
from postmill.kernels.quantize.packing import pack_rows, unpack_rows
from postmill.stages.shared.foreign_codes import Foreign, Layer, read_layer, read_method
from postmill.stages.shared.quantized_weights import read_encoded, read_tensor

PACKAGES = {
    "compressed-tensors": "compressed_tensors",
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "torchao": "torchao",
    "aqlm": "aqlm",
    "eetq": "kernels",
    "fp8": "kernels",
}
"""`quant_method` of a config.json -> what transformers needs to load it."""


UNREADABLE = {
    "hqq": "which transformers 5.23 does not load, whatever is installed",
    "quanto": "which transformers 5.23 computes but does not save, so what these files hold is not known",
}
"""Methods that no package helps with, and why."""


def check_packages(path: Path, quantization: dict[str, Any]) -> None:
    """Raise ConfigError (2) if the package that reads these weights is not installed."""
    method = str(quantization.get("quant_method"))
    if method in UNREADABLE:
        raise ConfigError(
            f"{path}: its weights are quantized by {method}, {UNREADABLE[method]}; quantize its source with postmill"
            " quantize, or train on the source with --quant nf4",
            USAGE,
        )
    package = PACKAGES.get(method)
    if package is None:
        raise ConfigError(
            f"{path}: its weights are quantized by {method!r}, which is not known here (known are"
            f" {', '.join(PACKAGES)}); use the model before it was quantized",
            USAGE,
        )
    try:
        importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f"{path}: its weights are quantized by {method}, and {package} is not installed; pip install"
            f" {package.replace('_', '-').replace('.', '-')}, or quantize its source with postmill quantize",
            USAGE,
        ) from None


def is_ours(quantization: dict[str, Any]) -> bool:
    """Whether `load_packed` reads such weights: integers of compressed-tensors, GPTQ, AWQ; activations as they are."""
    if quantization.get("quant_method") != "compressed-tensors":
        return read_method(quantization) is not None
    groups = quantization.get("config_groups", {}).values()
    return all(
        group.get("input_activations") is None and group.get("weights", {}).get("type", "int") == "int"
        for group in groups
    )


class PackedLinear(nn.Linear):
    """A linear layer whose weight, frozen, is made from its codes each time it is asked for."""

    def __init__(self, layer: Layer, bits: int, bias: Tensor | None, dtype: torch.dtype) -> None:
        """`dtype` is what its weight is made in; codes of less than eight bits are kept as words."""
        nn.Module.__init__(self)
        codes, scale, zero = layer.encoded
        self.out_features, self.in_features = codes.shape
        self._dtype, self._bits = dtype, bits
        self.register_buffer("codes", codes if bits == 8 else pack_rows(codes, bits), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("zero", zero, persistent=False)
        # where each column of the weight lies among the codes
        place = None if layer.order_K is None else layer.order_K.argsort()
        self.register_buffer("place", place, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)  # type: ignore[assignment]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a number that is computed, not kept
        """[out, in], the numbers that the codes stand for."""
        codes: Any = self.codes
        if codes.dtype == torch.int32:
            codes = unpack_rows(codes, self._bits, self.in_features)
        scale: Any = self.scale
        zero: Any = self.zero
        place: Any = self.place
        weight = decode(Encoded(codes, scale, zero)).to(self._dtype)
        return weight if place is None else weight[:, place]

    def forward(self, values: Tensor) -> Tensor:
        """values @ weight^T + bias."""
        product: Tensor = _Product.apply(values, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """The product with a weight that neither pass keeps."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return values @ layer.weight.to(values.dtype).T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight.to(gradient.dtype), None


def load_packed(path: Path, empty: Any, dtype: torch.dtype) -> Any:
    """`empty`, the model of `path` without weights, with packed layers and everything else in `dtype`.

    Raises ArtifactError (65) for a tensor that is missing or damaged.
    """
    foreign = read_method(quantization_of(path) or {})
    with open_weights(path) as weights:
        for name in [name for name, _ in empty.named_modules()]:
            if f"{name}.weight_scale" in weights.where or f"{name}.qweight" in weights.where:
                bias = read_tensor(weights, f"{name}.bias") if f"{name}.bias" in weights.where else None
                parent, _, leaf = name.rpartition(".")
                layer, bits = _read_layer(weights, name, foreign)
                setattr(empty.get_submodule(parent), leaf, PackedLinear(layer, bits, bias, dtype))
        plain: dict[str, Tensor] = {}
        for name, parameter in empty.named_parameters():
            if parameter.is_meta and name in weights.where:
                plain[name] = read_tensor(weights, name).to(dtype)
    empty.load_state_dict(plain, strict=False, assign=True)
    empty.tie_weights()
    missing = [name for name, parameter in empty.named_parameters() if parameter.is_meta]
    if missing:
        raise ConfigError(f"{path}: has no tensor {missing[0]}, which its class expects; quantize the model again")
    return empty.requires_grad_(False).eval()


def _read_layer(weights: Weights, name: str, foreign: Foreign | None) -> tuple[Layer, int]:
    """A quantized layer, and the bits of its codes."""
    if foreign is not None:
        return read_layer(weights, name, foreign), foreign.bits
    encoded, bits = read_encoded(weights, name), 8
    if f"{name}.weight_packed" in weights.where:
        bits = 32 * weights.entry(f"{name}.weight_packed").shape[1] // encoded.codes.shape[1]
    return Layer(encoded, None), bits


def quantization_of(path: Path) -> dict[str, Any] | None:
    """What config.json says of quantized weights; None for plain ones."""
    found = load_json(path / "config.json").get("quantization_config")
    return found if isinstance(found, dict) else None
