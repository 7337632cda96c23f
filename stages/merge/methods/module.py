"""What a merge rule is given: one module of the base, and what an adapter has for it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.model_folder import ADAPTER_WEIGHTS
from postmill.stages.merge.base import Base
from postmill.stages.merge.edits import F32, Array, Edit, LowRank, RowWise, Whole

Edits = list[tuple[str, Edit]]
"""Tensor of the base -> what is done to it."""


class Module(msgspec.Struct, frozen=True):
    """One module: its adapter's tensors (`parts`), its config, and the base they are for."""

    path: Path
    """The adapter's folder."""
    name: str
    depth: int
    """How many wrappers of PEFT lie around the module that the parts belong to: it tells parameters of one apart."""
    parts: dict[str, Array]
    """Kind of tensor (`lora_A.weight`, `ia3_l`) -> its numbers."""
    shared: dict[str, Array]
    """Tensors that all modules of the adapter share, as VeRA's projections."""
    config: dict[str, Any]
    base: Base
    strength: float
    """What the change is multiplied with (`--scale`)."""

    @property
    def place(self) -> str:
        """For messages: the file."""
        return f"{self.path / ADAPTER_WEIGHTS}"

    def tensor(self, leaf: str = "weight") -> str:
        """The base's name of the module's weight or bias. Raises ArtifactError (78) if it has none."""
        return find_tensor(self.path, f"{self.name}.{leaf}", self.base, self.config)

    def has_bias(self) -> bool:
        return bool(self.base.find(f"{self.name}.bias"))

    def size(self) -> tuple[int, int]:
        """Rows and columns of the module's weight as stored, all axes but the first taken together."""
        shape = self.base.shape(self.tensor())
        return shape[0], int(np.prod(shape[1:], dtype=np.int64))

    def is_conv1d(self) -> bool:
        """Whether the weight is stored (in, out): GPT-2's Conv1D."""
        return self.base.is_conv1d(self.tensor().removesuffix(".weight"), 1, 1)

    def part(self, name: str) -> Array:
        """Raises ArtifactError (65) naming the part that is not there."""
        if name not in self.parts:
            found = ", ".join(sorted(self.parts))
            raise ArtifactError(f"{self.place}: {self.name} has only {found}, no {name}; save the adapter again")
        return self.parts[name]

    def common(self, name: str) -> Array:
        """A tensor that all modules share. Raises ArtifactError (65) if the adapter was saved without."""
        if name not in self.shared:
            raise ArtifactError(
                f"{self.place}: has no {name}: it was saved without (save_projection=False); load it with PEFT and save"
                " it with its projections",
                BAD_DATA,
            )
        return self.shared[name]

    def linear(self) -> tuple[int, int]:
        """(out, in) of the module, whose weight is a matrix. Raises ConfigError (2) for a convolution."""
        rows, columns = self.size()
        if len(self.base.shape(self.tensor())) > 2:
            kind = self.config.get("peft_type")
            raise ConfigError(f"{self.path}: {self.name} is a convolution, which {kind} is not merged into here", USAGE)
        return (columns, rows) if self.is_conv1d() else (rows, columns)

    def low_rank(self, left: Array, right: Array, scale: float) -> Edits:
        """`W += left @ right * scale` for a weight of (out, in), transposed where the module keeps it so."""
        left, right = (right.T, left.T) if self.is_conv1d() else (left, right)
        edit = LowRank(np.ascontiguousarray(left), np.ascontiguousarray(right), scale)
        return [(self.tensor(), edit)]

    def whole(self, function: Callable[[F32], F32]) -> Edits:
        """`W = function(W)` on (out, in), transposed where the module keeps it so."""
        if self.is_conv1d():
            return [(self.tensor(), Whole(self.size(), lambda weight: function(weight.T).T))]
        return [(self.tensor(), Whole(self.size(), function))]

    def row_wise(self, function: Callable[[F32, int], F32]) -> Edits:
        """`W[start:] = function(W[start:], start)` for rows of (out, in); all at once where they lie transposed."""
        if self.is_conv1d():
            return self.whole(lambda weight: function(np.ascontiguousarray(weight), 0))
        return [(self.tensor(), RowWise(self.size(), function))]

    def option(self, name: str, pattern: str, module: str = "") -> Any:
        """`config[name]`, or the value of the first key of `config[pattern]` that the module's name ends in."""
        return pattern_value(self.config.get(pattern), module or self.name, self.config.get(name))

    def need_full_strength(self) -> None:
        if self.strength != 1:
            kind = self.config.get("peft_type")
            raise ConfigError(
                f"{self.path}: only LoRA without DoRA can be scaled, not {kind}; leave --scale at 1", USAGE
            )

    def damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.place}: {self.name}: {what}", BAD_DATA)


def pattern_value(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that the module's name ends in, as PEFT matches rank_pattern and alpha_pattern."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def find_tensor(path: Path, tensor: str, base: Base, config: dict[str, Any]) -> str:
    """The base's name of `tensor`. Raises ArtifactError (78) with what is near, and the base that the adapter names."""
    match = base.find(tensor)
    if match:
        return match
    near = base.closest(tensor)
    nearest = f" (nearest: {near})" if near else ""
    named = config.get("base_model_name_or_path")
    trained = f", which it says is {named}" if named else ""
    raise ArtifactError(
        f"{path}: changes {tensor}, which the base does not have{nearest}; pass the base it was trained on{trained}"
        " with -m, or rename the adapter's tensors",
        MISMATCH,
    )
