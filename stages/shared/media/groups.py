"""The parts of a model that reads pictures: vision, projector, language."""

from typing import Any

GROUPS = ("vision", "projector", "language")
_PROJECTORS = frozenset({"multi_modal_projector", "connector", "merger", "deepstack_merger_list"})
"""What stands between tower and decoder, by family; Qwen's lies inside the tower."""


def reads_pictures(model: Any) -> bool:
    """Whether a transformers model has a vision tower."""
    return getattr(model.config, "vision_config", None) is not None


def group_of(model: Any) -> "dict[str, str]":
    """The part that each module and each parameter belongs to, by name; empty for a model of text."""
    if not reads_pictures(model):
        return {}
    tower = model.get_encoder(modality="image")
    [path] = [name for name, module in model.named_modules() if module is tower]
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    return {name: _part(name, path) for name in names if name}


def _part(name: str, tower: str) -> str:
    if not _PROJECTORS.isdisjoint(name.split(".")):
        return "projector"
    return "vision" if name == tower or name.startswith(f"{tower}.") else "language"
