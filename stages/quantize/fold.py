"""Scales put into a layer: what makes an input is divided by them, the weights that read it are multiplied.

Pairs are found by looking: a norm whose output is the very tensor that linear layers are given, and by name the two
places where nothing but a product lies between (values and output, up and down). Each is tried on one row. A layer that
answers otherwise than before has something else that reads the input, and keeps its weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

ALIKE = 1e-4
"""Relative change of a layer's output that float32 explains."""
_BEFORE = {"o_proj": "v_proj", "down_proj": "up_proj"}


class Inputs(NamedTuple):
    """What went into linear layers that share it. moment: sum of x x^T [K, K]; largest: size of each input [K]."""

    readers: list[str]
    moment: Tensor
    largest: Tensor
    maker: str
    """The norm that made it, or empty."""


Scales = Callable[[list[str], list[Tensor], Inputs], Tensor | None]
"""Scales [K] for the weights of modules by these names."""


def find_maker(layer: nn.Module, inputs: Inputs) -> str:
    """Name of the module that can take the scales of these inputs; empty if there is none."""
    if inputs.maker or len(inputs.readers) != 1:
        return inputs.maker
    parent, _, leaf = inputs.readers[0].rpartition(".")
    name = f"{parent}.{_BEFORE.get(leaf, '')}"
    modules = dict(layer.named_modules())
    maker = modules.get(name)
    fits = type(maker) is nn.Linear and maker.out_features == inputs.moment.shape[0]
    return name if fits else ""


def fold(
    layer: nn.Module,
    layer_inputs: list[Inputs],
    scales: Scales,
    *,
    foldable: Callable[[str], bool],
    answer: Callable[[], Tensor],
    stored: Callable[[str, Tensor], Tensor],
) -> tuple[list[Inputs], dict[str, Tensor]]:
    """Scale what can be. Returns the inputs as they are then, and parameters to be stored anew, by name in the layer.

    foldable: whether a linear layer is quantized, so that it is written anew; answer: the layer's output for one row;
    stored: a parameter by name as it is stored, rounded to its dtype.
    """
    modules = dict(layer.named_modules())
    before = answer()
    after: list[Inputs] = []
    replaced: dict[str, Tensor] = {}
    for inputs in layer_inputs:
        after.append(inputs)
        name = find_maker(layer, inputs)
        maker = modules.get(name) if name else None
        readers = [modules[reader] for reader in inputs.readers]
        if maker is None or not all(foldable(reader) for reader in inputs.readers):
            continue
        if type(maker) is nn.Linear and not foldable(name):
            continue
        scale = scales(inputs.readers, [_weight(reader) for reader in readers], inputs)
        if scale is None:
            continue
        kept = [(module, dict(module.named_parameters(recurse=False))) for module in (maker, *readers)]
        scale, changed = _divide(maker, name, scale, stored)
        for reader in readers:
            reader.weight = _parameter(_weight(reader) * scale)
        if float((answer() - before).norm()) > ALIKE * float(before.norm()):
            for module, parameters in kept:
                for leaf, parameter in parameters.items():
                    setattr(module, leaf, parameter)
            continue
        replaced |= changed
        after[-1] = inputs._replace(moment=inputs.moment / (scale[:, None] * scale), largest=inputs.largest / scale)
    return after, replaced


def _divide(
    maker: nn.Module, name: str, scale: Tensor, stored: Callable[[str, Tensor], Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide what `maker` puts out. Returns the scales that hold exactly, and its parameters that are stored anew."""
    changed: dict[str, Tensor] = {}
    if type(maker) is nn.Linear:
        maker.weight = _parameter(maker.weight / scale[:, None])
    else:
        old = _weight(maker)
        new = stored(f"{name}.weight", old / scale)
        # the rounding of a norm's weight is made up for by the weights that follow, which have more digits
        scale = torch.where((new == 0) | (old == 0), 1.0, old / new)
        new = torch.where(scale == 1.0, old, new)
        maker.weight = _parameter(new)
        changed[f"{name}.weight"] = new
    bias = getattr(maker, "bias", None)
    if bias is not None:
        new = stored(f"{name}.bias", bias / scale)
        maker.bias = _parameter(new)
        changed[f"{name}.bias"] = new
    return scale, changed


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach(), requires_grad=False)
