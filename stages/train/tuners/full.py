"""Full training: every weight is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

if TYPE_CHECKING:
    from torch import Tensor

    from postmill.stages.train.tuners.interface import Start, Tuner


class Full(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="full"):
    """Every weight is trained."""

    default_lr: ClassVar[float] = 1e-5
    makes: ClassVar[str] = "model"

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.interface import Tuner

        return Tuner(start, all_tensors, save_model)


def start(given: "Start") -> Any:
    """A model all of whose weights are trained, in float32; of the checkpoint if there is one."""
    import torch

    return given.load(given.checkpoint or given.base, torch.float32)


def all_tensors(model: Any) -> "Mapping[str, Tensor]":
    """Every weight, tied ones by all their names."""
    found: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    return found


def save_model(model: Any, tensors: "Mapping[str, Tensor]", folder: Path, base: str) -> None:
    """As transformers does."""
    from postmill.stages.shared.hf import quiet_libraries

    with quiet_libraries():
        model.save_pretrained(folder, state_dict=dict(tensors))
