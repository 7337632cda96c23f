"""The parts of a model that reads pictures or sounds: vision, audio, projector, language."""

from typing import Any

GROUPS = ("vision", "audio", "projector", "language")
_TOWERS = {"vision": "image", "audio": "audio"}
"""Part -> what transformers calls it."""
_PROJECTORS = frozenset({"multi_modal_projector", "connector", "merger", "deepstack_merger_list"})
"""What stands between tower and decoder, by family; Qwen's lies inside the tower."""


def reads_pictures(model: Any) -> bool:
    """Whether a transformers model has a tower, for pictures or for sounds."""
    return any(getattr(model.config, f"{part}_config", None) is not None for part in _TOWERS)


def group_of(model: Any) -> "dict[str, str]":
    """The part that each module and each parameter belongs to, by name; empty for a model of text."""
    if not reads_pictures(model):
        return {}
    paths: dict[str, str] = {}
    for part, modality in _TOWERS.items():
        if getattr(model.config, f"{part}_config", None) is not None:
            tower = model.get_encoder(modality=modality)
            [paths[part]] = [name for name, module in model.named_modules() if module is tower]
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    return {name: _part(name, paths) for name in names if name}


def _part(name: str, towers: dict[str, str]) -> str:
    if not _PROJECTORS.isdisjoint(name.split(".")):
        return "projector"
    inside = (part for part, tower in towers.items() if name == tower or name.startswith(f"{tower}."))
    return next(inside, "language")
