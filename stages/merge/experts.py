"""Mixtures of experts: one adapter layout onto the other.

transformers 5 holds all experts of a layer in one parameter (`experts.gate_up_proj`, `experts.down_proj`), and PEFT
trains it with `target_parameters`; files mostly keep a tensor for each expert (`experts.3.down_proj.weight`), as
transformers 4 held them and its adapters name them. Each of the four combinations is a list of plain low-rank edits.
"""

import re

import msgspec
import numpy as np

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.stages.merge.edits import F32, Edit, LowRank, Part
from postmill.stages.merge.methods.module import Edits, Module

HALVES = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
    "up_proj": (("up_proj",), ("w1",)),
}
"""Parameter of the stack -> the modules that one expert has for it, in their order inside, by family."""
_ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias")


class Factors(msgspec.Struct, frozen=True):
    """`scale * B A`. a: (rank, in), b: (out, rank)."""

    a: F32
    b: F32
    scale: float

    def edit(self, *, transposed: bool) -> LowRank:
        """For a weight of (out, in), or (in, out) if `transposed`."""
        left, right = (self.a.T, self.b.T) if transposed else (self.b, self.a)
        return LowRank(np.ascontiguousarray(left), np.ascontiguousarray(right), self.scale)


_EXPERT = re.compile(r"(?P<stack>.*\bexperts)\.(?P<number>\d+)\.(?P<leaf>\w+)")


def parameter_of(module: Module) -> str:
    """Which parameter the factors of a module are for, "" if for its weight.

    PEFT wraps a module once for each parameter that `target_parameters` names, the first one innermost, in the order in
    which the module has them.
    """
    base, name = module.base, module.name
    targets = module.config.get("target_parameters") or []
    there = [p for p in _ORDER if base.find(f"{name}.{p}") or (base.experts(name) and _leaves(module, p))]
    wrapped = [p for p in there if any(f"{name}.{p}" == t or f"{name}.{p}".endswith(f".{t}") for t in targets)]
    return wrapped[-1 - module.depth] if module.depth < len(wrapped) else ""


def _leaves(module: Module, parameter: str) -> tuple[str, ...]:
    """What one expert has for a parameter of the stack, in a base that keeps a tensor for each expert."""
    families = HALVES.get(parameter, ())
    return next((names for names in families if module.base.find(f"{module.name}.0.{names[0]}.weight")), ())


def stacked_edits(module: Module, parameter: str, factors: Factors) -> Edits:
    """Edits of all experts from PEFT's factors for a parameter of the module.

    a: (experts * rank, in), expert by expert; b: (out, rank * experts), rank by rank, as PEFT's ParamWrapper has them.
    """
    base = module.base
    stack = base.find(f"{module.name}.{parameter}")
    if stack:
        num_experts, rows, columns = base.shape(stack) if len(base.shape(stack)) == 3 else (1, *base.shape(stack))
        shape = (factors.a.shape[1], factors.b.shape[0])
        transposed = (rows, columns) == shape and (rows != columns or base.is_transposed_stack())
        edits = [one.edit(transposed=transposed) for one in _per_expert(module, factors, num_experts)]
        return [(stack, Part(edit, n * rows, rows)) for n, edit in enumerate(edits)]
    num_experts = base.experts(module.name)
    leaves = _leaves(module, parameter)
    if not num_experts or not leaves or factors.b.shape[0] % len(leaves):
        raise ArtifactError(
            f"{module.place}: changes {module.name}.{parameter}, which the base has neither as one tensor nor expert by"
            " expert; it was trained on another model, pass that with -m",
            MISMATCH,
        )
    size = factors.b.shape[0] // len(leaves)
    all_edits: Edits = []
    for number, one in enumerate(_per_expert(module, factors, num_experts)):
        for half, leaf in enumerate(leaves):
            part = Factors(one.a, one.b[half * size : (half + 1) * size], one.scale)
            all_edits.append((base.find(f"{module.name}.{number}.{leaf}.weight"), part.edit(transposed=False)))
    return all_edits


def one_expert_edit(module: Module, factors: Factors) -> tuple[str, Edit] | None:
    """The edit of one expert (`...experts.3.down_proj`) where the base holds them in a stack; None if it does not."""
    match = _EXPERT.fullmatch(module.name)
    if not match:
        return None
    base = module.base
    for parameter, families in HALVES.items():
        stack = base.find(f"{match['stack']}.{parameter}")
        leaves = next((names for names in families if match["leaf"] in names), ())
        if not stack or not leaves:
            continue
        _, rows, columns = base.shape(stack)
        half, first = leaves.index(match["leaf"]), int(match["number"]) * rows
        size = len(factors.b)
        shape = (size * len(leaves), factors.a.shape[1])
        if (rows, columns) == shape and (rows != columns or not base.is_transposed_stack()):
            return stack, Part(factors.edit(transposed=False), first + half * size, size)
        wide = np.zeros((size * len(leaves), factors.b.shape[1]), np.float32)
        wide[half * size : (half + 1) * size] = factors.b
        return stack, Part(Factors(factors.a, wide, factors.scale).edit(transposed=True), first, rows)
    return None


def _per_expert(module: Module, factors: Factors, num_experts: int) -> list[Factors]:
    a, b = factors.a, factors.b
    if a.shape[0] % num_experts or a.shape[0] != b.shape[1]:
        raise module.damaged(
            f"factors of {list(a.shape)} and {list(b.shape)} do not divide among {num_experts} experts; pass the base"
            " it was trained on with -m"
        )
    first = a.reshape(num_experts, -1, a.shape[1])
    second = b.reshape(b.shape[0], -1, num_experts)
    return [Factors(first[n], second[:, :, n], factors.scale) for n in range(num_experts)]
