"""Full training: every weight is trained, or those that two lists of names leave."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from postmill.io.errors import USAGE, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from postmill.stages.train.tuners.interface import Start, Tuner


class Full(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="full"):
    """Every weight is trained."""

    default_lr: ClassVar[float] = 1e-5
    makes: ClassVar[str] = "model"

    freeze: list[str] = []
    """Parameters that are not trained: regular expressions, found anywhere in their names (embed_tokens, norm). Of a
    model that reads pictures also its parts: vision, projector, language."""
    unfreeze: list[str] = []
    """Parameters that are trained whatever --freeze says. Alone: nothing else is trained."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.interface import Tuner

        def start(given: "Start") -> Any:
            model = load_whole(given)
            choose_trained(model, self.freeze, self.unfreeze)
            return model

        return Tuner(start, all_tensors, save_model)


def load_whole(given: "Start") -> Any:
    """The model in float32, of the checkpoint if there is one."""
    import torch

    return given.load(given.checkpoint or given.base, torch.float32)


def choose_trained(model: Any, freeze: list[str], unfreeze: list[str]) -> None:
    """Freeze what the lists say. Raises ConfigError (2) for an expression that fits no parameter or is none."""
    from postmill.stages.shared.media.groups import group_of

    if not freeze and not unfreeze:
        return
    names, parts = [name for name, _ in model.named_parameters()], group_of(model)
    frozen, kept = _fitting("freeze", freeze, names, parts), _fitting("unfreeze", unfreeze, names, parts)
    for name, parameter in model.named_parameters():
        rests = name in frozen if freeze else True
        parameter.requires_grad_(parameter.requires_grad and (not rests or name in kept))


def _fitting(option: str, expressions: list[str], names: list[str], parts: dict[str, str]) -> set[str]:
    import re

    found: set[str] = set()
    for text in expressions:
        try:
            is_part = text in parts.values()
            hits = [name for name in names if (parts[name] == text if is_part else re.search(text, name))]
        except re.error as error:
            raise ConfigError(f"--full.{option} {text}: no regular expression ({error})", USAGE) from None
        if not hits:
            raise ConfigError(
                f"--full.{option} {text}: fits no parameter; there are {', '.join(names[:4])}, ...", USAGE
            )
        found |= set(hits)
    return found


def all_tensors(model: Any) -> "Mapping[str, Tensor]":
    """Every weight, tied ones by all their names."""
    found: Mapping[str, Tensor] = model.state_dict(keep_vars=True)
    return found


def save_model(model: Any, tensors: "Mapping[str, Tensor]", folder: Path, base: str) -> None:
    """As transformers does."""
    from postmill.stages.shared.hf import quiet_libraries

    with quiet_libraries():
        model.save_pretrained(folder, state_dict=dict(tensors))
