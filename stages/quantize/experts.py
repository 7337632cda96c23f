"""Mixtures of experts whose files have a matrix for each expert, where their class has one tensor for all of a layer.

transformers 5 stacks `experts.3.gate_proj.weight` and `experts.3.up_proj.weight` into `experts.gate_up_proj` when it
loads. Here they stay what they are on disk: each is quantized by itself, and stacked when a layer is to compute.
"""

import re
from collections.abc import Collection

import torch
from torch import Tensor

from postmill.stages.quantize.layers import Read

_PARTS = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("down_proj",), ("w2",))}
_EXPERT = re.compile(r"(.+\.experts\.\d+\.(?:gate_proj|up_proj|down_proj|w1|w2|w3))\.weight")


def expert_modules(names: Collection[str]) -> list[str]:
    """Modules of single experts among tensors of a folder, like `model.layers.0.mlp.experts.3.up_proj`."""
    matches = (_EXPERT.fullmatch(name) for name in sorted(names))
    return [match[1] for match in matches if match]


def router_modules(names: Collection[str]) -> list[str]:
    """Modules that choose among experts: small, and every error in them sends tokens elsewhere."""
    ends = (".mlp.gate", ".block_sparse_moe.gate", ".shared_expert_gate")
    modules = sorted(name.removesuffix(".weight") for name in names if name.endswith(".weight"))
    return [module for module in modules if module.endswith(ends)]


def on_disk(name: str, names: Collection[str]) -> list[list[str]]:
    """Where a tensor of the class lies: one name, or for each expert the names of what is put below one another.

    Empty if it is not there.
    """
    if name in names:
        return [[name]]
    places = [name, name.replace(".mlp.", ".block_sparse_moe.")]
    if places[1] in names:
        return [[places[1]]]
    stack, _, leaf = name.rpartition(".")
    for base in (stack, stack.replace(".mlp.", ".block_sparse_moe.")):
        for parts in _PARTS.get(leaf, ()):
            found: list[list[str]] = []
            while all(f"{base}.{len(found)}.{part}.weight" in names for part in parts):
                found.append([f"{base}.{len(found)}.{part}.weight" for part in parts])
            if found:
                return found
    return []


def by_class(read: Read, names: Collection[str]) -> Read:
    """`read`, of tensors as they are named on disk, for names as the class has them."""

    def found(name: str) -> Tensor:
        places = on_disk(name, names)
        if len(places) == 1 and len(places[0]) == 1 and not name.endswith(tuple(_PARTS)):
            return read(places[0][0])
        if not places or name in names:
            return read(name)
        return torch.stack([torch.cat([read(part) for part in parts]) for parts in places])

    return found
