"""A decoder with more layers, each new one a copy whose outputs are zero, so that at first nothing changes."""

import copy
from typing import Any

import torch
from torch import nn

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.stages.train.tuners.full import all_tensors, load_whole, save_model
from postmill.stages.train.tuners.interface import Start, Tuner
from postmill.stages.train.tuners.layers import layers_of

_LAST = ("o_proj", "out_proj", "down_proj", "fc2", "c_proj", "dense", "dense_4h_to_h")
"""Names of the modules whose output is added to the residual stream: attention's and the MLP's last one."""


def llama_pro_tuner(blocks: int) -> Tuner:
    """The tuner of `LlamaPro`."""

    def start(given: Start) -> Any:
        model = load_whole(given)
        before = int(load_json(given.base / "config.json")["num_hidden_layers"])
        if before % blocks:
            raise ConfigError(f"--llama-pro.blocks {blocks}: does not divide the model's {before} layers", USAGE)
        if len(layers_of(model)) == before:
            expand(model, blocks)
        model.requires_grad_(False)
        size = before // blocks + 1
        for index, layer in enumerate(layers_of(model)):
            layer.requires_grad_(index % size == size - 1)
        return model

    return Tuner(start, all_tensors, save_model)


def expand(model: Any, blocks: int) -> None:
    """Put a copy of the last layer of each of `blocks` groups after it. Raises ConfigError (2) for unknown layers."""
    old = layers_of(model)
    size = len(old) // blocks
    order = [index for index in range(len(old)) for _ in range(2 if index % size == size - 1 else 1)]
    new: list[nn.Module] = []
    for place, index in enumerate(order):
        is_copy = place > 0 and order[place - 1] == index
        layer = copy.deepcopy(old[index]) if is_copy else old[index]
        if is_copy:
            _silence(layer)
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place  # type: ignore[assignment]  # a number that its family keeps there
        new.append(layer)
    for place, layer in enumerate(new):
        if place < len(old):
            old[place] = layer
        else:
            old.append(layer)
    config = model.config.get_text_config()
    for name, value in vars(config).copy().items():
        if isinstance(value, list) and len(value) == blocks * size and name != "architectures":
            setattr(config, name, [value[index] for index in order])
    config.num_hidden_layers = len(order)


def _silence(layer: nn.Module) -> None:
    """Make the layer the identity: what it adds to the residual stream is zero."""
    ends = [m for name, m in layer.named_modules() if name.rpartition(".")[2] in _LAST and hasattr(m, "weight")]
    if len(ends) != 2:
        raise ConfigError(
            f"--tuner llama-pro: {type(layer).__name__} has {len(ends)} modules like {', '.join(_LAST[:3])}, expected 2"
            " (attention, MLP); this family cannot be deepened here",
            USAGE,
        )
    with torch.no_grad():
        for module in ends:
            for parameter in module.parameters():
                parameter.zero_()
