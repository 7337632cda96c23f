"""An adapter with a factor for each expert, written as the one that PEFT can load onto transformers 5's stacks.

transformers 5 holds all experts of a layer in one parameter, and PEFT converts adapters of version 4 only if every
expert and both halves of `gate_up_proj` have factors. This fills the gaps with zeros. Only the parity check needs it:
the merge itself reads either layout.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from postmill.io.safetensors_file import SafetensorsFile, SafetensorsWriter
from postmill.stages.merge.arithmetic import to_float32
from postmill.stages.merge.base import bare, without_wrappers
from postmill.stages.merge.edits import F32
from postmill.stages.merge.experts import HALVES
from postmill.stages.merge.methods.module import pattern_value

_FACTOR = re.compile(r"(?P<stack>.*\bexperts)\.(?P<number>\d+)\.(?P<leaf>\w+)\.lora_(?P<side>[AB])\.(\w+\.)?weight")
_PREFIX = "base_model.model."
Factors = dict[tuple[str, str], dict[int, dict[str, F32]]]
"""(stack, leaf) -> expert -> side -> factor."""


def for_peft(path: Path, stacks: dict[str, tuple[int, ...]], folder: Path) -> Path:
    """The adapter in `path`, or one in `folder` that means the same, if it names experts that the model has stacked.

    stacks: names and shapes of the three-dimensional parameters of the model in memory.
    """
    unstacked: Factors = {}
    others: dict[str, F32] = {}
    with SafetensorsFile(path / ADAPTER_WEIGHTS) as file:
        for name, entry in file.tensors.items():
            values = to_float32(file.read(name), entry.dtype).reshape(entry.shape)
            match = _FACTOR.fullmatch(without_wrappers(name))
            if match:
                sides = unstacked.setdefault((match["stack"], match["leaf"]), {}).setdefault(int(match["number"]), {})
                sides[match["side"]] = values
            else:
                others[name] = values
    in_memory = {bare(name): name for name in stacks}
    if not unstacked or not any(f"{bare(stack)}.down_proj" in in_memory for stack, _ in unstacked):
        return path
    config = load_json(path / ADAPTER_CONFIG)
    tensors: dict[str, F32] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for stack in {stack for stack, _ in unstacked}:
        for depth, parameter in enumerate(("down_proj", "gate_up_proj")):
            target = in_memory[f"{bare(stack)}.{parameter}"]
            leaves = next(
                (names for names in HALVES[parameter] if any((stack, leaf) in unstacked for leaf in names)),
                HALVES[parameter][0],
            )
            first = f"{stack}.0.{leaves[0]}"
            one = int(pattern_value(config.get("rank_pattern"), first, config["r"]))
            a, b = _stack([unstacked.get((stack, leaf), {}) for leaf in leaves], stacks[target], one)
            module = _PREFIX + target.rpartition(".")[0] + ".base_layer" * depth
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a, b
            ranks[re.escape(target)] = one * len(leaves)
            # alpha / rank, or alpha / sqrt(rank), stays what it is for one expert
            grown = math.sqrt(len(leaves)) if config.get("use_rslora") else len(leaves)
            alphas[re.escape(target)] = (
                float(pattern_value(config.get("alpha_pattern"), first, config["lora_alpha"])) * grown
            )
    _save(folder, config, tensors | others, ranks, alphas)
    return folder


def _stack(halves: list[dict[int, dict[str, F32]]], shape: tuple[int, ...], rank: int) -> tuple[F32, F32]:
    """PEFT's two factors for a stack of `shape` (experts, out, in): zeros where an expert has none."""
    num_experts, rows, columns = shape
    size = rows // len(halves)
    a = np.zeros((num_experts, len(halves), rank, columns), np.float32)
    b = np.zeros((num_experts, rows, len(halves), rank), np.float32)
    for half, experts in enumerate(halves):
        for number, sides in experts.items():
            if len(sides) != 2 or len(sides["A"]) != rank:
                raise ConfigError(
                    "experts have factors of several ranks, which PEFT cannot load; pass --parity off", USAGE
                )
            a[number, half] = sides["A"]
            b[number, half * size : (half + 1) * size, half] = sides["B"]
    wide = rank * len(halves)
    return a.reshape(num_experts * wide, columns), b.reshape(num_experts, rows, wide).transpose(1, 2, 0).reshape(
        rows, -1
    )


def _save(
    folder: Path, config: dict[str, Any], tensors: dict[str, F32], ranks: dict[str, int], alphas: dict[str, float]
) -> None:
    layout = {name: ("F32", tuple(values.shape)) for name, values in tensors.items()}
    with SafetensorsWriter(folder / ADAPTER_WEIGHTS, layout, {"format": "pt"}) as writer:
        for name, values in tensors.items():
            writer.write(name, memoryview(np.ascontiguousarray(values).data).cast("B"))
    modules = {without_wrappers(name).partition(".lora_")[0] for name in tensors if ".lora_" in name}
    changed = {
        "target_modules": sorted(name for name in modules if not name.removesuffix(".base_layer").endswith("experts")),
        "target_parameters": [re.sub(r"\\(.)", r"\1", name) for name in ranks],
        "rank_pattern": (config.get("rank_pattern") or {}) | ranks,
        "alpha_pattern": (config.get("alpha_pattern") or {}) | alphas,
        "lora_dropout": 0.0,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config | changed))
