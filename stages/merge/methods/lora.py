"""LoRA, rank-stabilised LoRA, DoRA, and LoRA on bare parameters (experts).

`W + alpha / rank * B A`. Source: LoRA, <https://arxiv.org/abs/2106.09685>; alpha / sqrt(rank) with `use_rslora`:
<https://arxiv.org/abs/2312.03732>.
"""

import math
from typing import Any

from postmill.io.errors import BAD_DATA, USAGE, ArtifactError, ConfigError
from postmill.stages.merge.edits import F32, Add, ColumnDora, Dora, Edit, LowRank
from postmill.stages.merge.experts import Factors, one_expert_edit, parameter_of, stacked_edits
from postmill.stages.merge.methods.module import Edits, Module

PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Modules as vLLM and SGLang hold them -> as models are stored."""
_MAGNITUDES = ("lora_magnitude_vector.weight", "lora_magnitude_vector")
_PARTS = {
    "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B", *_MAGNITUDES,
}  # fmt: skip


def lora(module: Module) -> Edits:
    """The edits of one module. Raises ArtifactError (65, 78), ConfigError (2) for a scaled DoRA."""
    for part in module.parts.keys() - _PARTS:
        raise ArtifactError(
            f"{module.place}: tensor {module.name}.{part}: of no LoRA method known here; merge with peft instead"
        )
    embedding = "lora_embedding_A" in module.parts
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    if not all(name in module.parts for name in names):
        there = ", ".join(sorted(module.parts))
        raise ArtifactError(f"{module.place}: {module.name} has only {there} of its factors", BAD_DATA)
    a, b = (module.parts[name] for name in names)
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    targets = list(module.config.get("target_parameters") or [])
    parameter = parameter_of(module)
    if parameter:
        num_experts = _num_experts(module, parameter)
        scale = _scale(module, f"{module.name}.{parameter}", len(a) // num_experts, b.shape[1] // num_experts)
        return stacked_edits(module, parameter, Factors(a, b, scale))
    whole = f"{module.name}.weight"
    is_parameter = any(whole == target or whole.endswith(f".{target}") for target in targets)
    factors = Factors(a, b, _scale(module, whole if is_parameter else module.name, len(a), b.shape[1]))
    if not module.base.find(whole):
        expert = one_expert_edit(module, factors)
        if expert and module.parts.keys() <= {*names}:
            return [expert]
        split = _unpacked(module, factors)
        if split and module.parts.keys() <= {*names}:
            return split
    # an embedding's factors are stored transposed, and a Conv1D's weight is
    tensor = module.tensor()
    flipped = embedding or module.base.is_conv1d(tensor.removesuffix(".weight"), len(b), a.shape[1])
    edits: Edits = [(tensor, _with_magnitude(module, factors.edit(transposed=flipped), flipped))]
    if "lora_B.bias" in module.parts:
        edits.append((module.tensor("bias"), Add(module.parts["lora_B.bias"], factors.scale)))
    return edits


def _unpacked(module: Module, factors: Factors) -> Edits:
    """Edits of the parts of a module that serving engines pack (`qkv_proj`), where the base has them one by one.

    The parts share A; B's rows are theirs one after the other.
    """
    parent, _, leaf = module.name.rpartition(".")
    tensors = [module.base.find(f"{parent}.{name}.weight") for name in PACKED.get(leaf, ())]
    sizes = [module.base.shape(tensor)[0] for tensor in tensors if tensor]
    if not tensors or not all(tensors) or sum(sizes) != len(factors.b):
        return []
    edits: Edits = []
    first = 0
    for tensor, size in zip(tensors, sizes, strict=True):
        part = Factors(factors.a, factors.b[first : first + size], factors.scale)
        edits.append((tensor, part.edit(transposed=False)))
        first += size
    return edits


def _with_magnitude(module: Module, low_rank: LowRank, flipped: bool) -> Edit:
    magnitude: F32 | None = next((module.parts[name] for name in _MAGNITUDES if name in module.parts), None)
    if magnitude is None:
        return low_rank
    if module.strength != 1:
        raise ConfigError(f"{module.path}: a DoRA adapter cannot be scaled; leave its --scale at 1", USAGE)
    return (ColumnDora if flipped else Dora)(low_rank, magnitude.reshape(-1))


def _num_experts(module: Module, parameter: str) -> int:
    stack = module.base.find(f"{module.name}.{parameter}")
    shape = module.base.shape(stack) if stack else ()
    return max(1, shape[0] if len(shape) == 3 else module.base.experts(module.name))


def _scale(module: Module, name: str, rank: int, other: int) -> float:
    """The factor of B A. Raises ArtifactError (65) if the ranks are not what the config says of `name`."""
    wanted = module.option("r", "rank_pattern", name)
    if wanted != rank or other != rank:
        raise ArtifactError(
            f"{module.place}: {module.name} has factors of rank {rank} and {other}, adapter_config.json says {wanted}",
            BAD_DATA,
        )
    alpha: Any = module.option("lora_alpha", "alpha_pattern", name)
    return module.strength * float(alpha) / (math.sqrt(rank) if module.config.get("use_rslora") else rank)
