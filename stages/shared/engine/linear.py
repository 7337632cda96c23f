"""The linear layers of a model in an engine: packed weights on the CPU, and a low-rank adapter of each request's own.

Letters: M rows, N outputs, K inputs, R rank.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG
from postmill.kernels.packed_linear import PackedWeight, packed_linear


class Factors(NamedTuple):
    """What an adapter adds to one layer: scale * B A x."""

    down: PackedWeight
    up: PackedWeight
    scale: float


class Segments:
    """Which rows of this step belong to which adapter; all layers of a model share one."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Tensor]] = []


class EngineLinear(nn.Module):
    """In place of an `nn.Linear` in float32 on the CPU; its result for a row does not depend on other rows."""

    def __init__(self, linear: nn.Linear, segments: Segments) -> None:
        super().__init__()
        self.packed = PackedWeight(linear.weight)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.adapters: dict[str, Factors] = {}
        self._segments = segments

    def forward(self, x: Tensor) -> Tensor:
        x_MK = x.reshape(-1, x.shape[-1])
        y_MN = packed_linear(x_MK, self.packed)
        if self.bias is not None:
            y_MN += self.bias
        for name, rows_M in self._segments.rows:
            factors = self.adapters.get(name)
            if factors is not None:
                low_MR = packed_linear(x_MK[rows_M], factors.down)
                y_MN.index_add_(0, rows_M, packed_linear(low_MR, factors.up), alpha=factors.scale)
        return y_MN.view(*x.shape[:-1], -1)


def replace_linears(model: nn.Module, segments: Segments) -> None:
    """Pack every `nn.Linear`; the layer that shares the embedding's weight gets a copy."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, EngineLinear(child, segments))


def is_row_by_row(model: nn.Module) -> bool:
    """Whether all weights with two dimensions or more are in packed layers and embeddings: experts in one tensor, or
    convolutions, are multiplied in ways that depend on the number of rows."""
    known = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    return all(p.ndim < 2 or id(p) in known for p in model.parameters())


def tail_rows(model: nn.Module) -> int:
    """Rows of a step have to be a multiple of this: torch computes what is left of a loop over whole vectors by another
    exp than the vectors, so that a number would depend on where it lies."""
    widths = {32}
    for module in model.modules():
        if isinstance(module, EngineLinear):
            widths |= {module.in_features, module.out_features}
        elif isinstance(module, nn.Embedding):
            widths.add(module.embedding_dim)
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    heads = getattr(text, "num_attention_heads", None)
    head = getattr(text, "head_dim", None) or (text.hidden_size // heads if text is not None and heads else 2)
    widths.add(max(head // 2, 1))
    return max(32 // (width & -width) if width % 32 else 1 for width in widths)


class AdapterNotPlain(ValueError):
    """An adapter that cannot be one of many on a model: it changes more than linear layers, or otherwise."""


_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def check_plain(folder: Path, model: nn.Module) -> None:
    """Raises AdapterNotPlain unless an adapter is LoRA of linear layers, before they are packed."""
    for name in _read_pairs(folder)[1]:
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise AdapterNotPlain(f"it changes {name}, which the model does not have") from None
        if type(module) is not nn.Linear:
            raise AdapterNotPlain(f"it changes {name}, which is no linear layer")


def read_factors(folder: Path, model: nn.Module) -> tuple[dict[str, Factors], Iterator[tuple[str, Tensor]]]:
    """What an adapter adds to each layer, by the layer's name; and its tensors by name.

    Raises AdapterNotPlain for anything but LoRA of linear layers.
    """
    config, pairs, tensors = _read_pairs(folder)
    factors = {}
    for name, pair in pairs.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise AdapterNotPlain(f"it changes {name}, which the model does not have") from None
        if not isinstance(module, EngineLinear) or set(pair) != {"A", "B"}:
            raise AdapterNotPlain(f"it changes {name}, which is no linear layer with both factors")
        if pair["A"].shape[1] != module.in_features or len(pair["B"]) != module.out_features:
            raise AdapterNotPlain(f"its factors of {name} do not fit the model's layer")
        factors[name] = Factors(PackedWeight(pair["A"]), PackedWeight(pair["B"]), _scale(config, name, len(pair["A"])))
    return factors, iter(sorted(tensors.items()))


def _read_pairs(folder: Path) -> tuple[dict[str, object], dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Config, factors by layer and letter, and all tensors of an adapter."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = load_json(folder / ADAPTER_CONFIG)
    kind = str(config.get("peft_type", ""))
    if kind != "LORA":
        raise AdapterNotPlain(f"it is {kind or 'of no known kind'}, expected LORA")
    for name in (
        "use_dora",
        "modules_to_save",
        "lora_bias",
        "fan_in_fan_out",
        "alora_invocation_tokens",
        "arrow_config",
    ):
        if config.get(name):
            raise AdapterNotPlain(f"it has {name} {json.dumps(config[name])[:60]}")
    if config.get("bias", "none") != "none":
        raise AdapterNotPlain(f"it trained biases, bias {config['bias']!r}")
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise AdapterNotPlain(f"its tensors cannot be read: {error}") from None
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None or tensor.ndim != 2:
            raise AdapterNotPlain(f"it has a tensor {name}")
        pairs.setdefault(match[1], {})[match[2]] = tensor.float()
    return config, pairs, tensors


def _scale(config: dict[str, object], name: str, rank: int) -> float:
    """As PEFT has it: alpha / rank, or alpha / sqrt(rank); a pattern may give a layer an alpha of its own."""
    alpha = config.get("lora_alpha", 8)
    patterns = config.get("alpha_pattern")
    if isinstance(patterns, dict):
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
    assert isinstance(alpha, (int, float))
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
