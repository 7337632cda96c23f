"""The families whose pictures, sounds and videos are understood, by the class of their processor."""

import importlib
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.digest import digest_bytes
from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.media.processor import Processor, load_processor

_HERE = "postmill.stages.shared.media.families"
FAMILIES = {
    "Qwen2AudioProcessor": "qwen_audio:family",
    "Qwen2VLProcessor": "qwen_vl:qwen2",
    "Qwen2_5_VLProcessor": "qwen_vl:qwen2_5",
    "Qwen3VLProcessor": "qwen_vl:qwen3",
    "Qwen2_5OmniProcessor": "qwen_omni:family",
    "Glm4vProcessor": "qwen_vl:glm4v",
    "InternVLProcessor": "internvl:family",
    "LlavaProcessor": "llava:family",
    "LlavaNextProcessor": "llava:next_family",
    "LlavaOnevisionProcessor": "llava:onevision",
    "Gemma3Processor": "gemma3:family",
    "Idefics3Processor": "idefics3:family",
    "SmolVLMProcessor": "idefics3:family",
    "PaliGemmaProcessor": "paligemma:family",
    "PixtralProcessor": "pixtral:family",
    "Llama4Processor": "llama4:family",
}
"""A function `(Processor) -> dict`: the members of `Family` in ext/rust/core/src/media/mod.rs."""


class Family(msgspec.Struct, frozen=True):
    """How a model's pictures, sounds and videos are written and counted."""

    processor: Processor
    members: dict[str, Any]
    template: str | None = None
    """The chat template of models that come without one."""

    def to_json(self) -> str:
        """For the Rust core."""
        return msgspec.json.encode({"name": self.processor.name, **self.members}).decode()


def find_family(folder: Path, texts: dict[str, str]) -> Family | None:
    """The family of the model in `folder`; none for a model of text. Raises ConfigError (2) for one without a rule."""
    processor = load_processor(folder, texts)
    if processor is None:
        return None
    if processor.name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"{folder}: no rule for the pictures of {processor.name}; known are {known}", USAGE)
    module, attribute = _place(processor)
    if hasattr(module, "check"):  # what only the model's own config says
        module.check(folder)
    return Family(processor, getattr(module, attribute)(processor), getattr(module, "TEMPLATE", None))


def image_options(folder: Path) -> dict[str, Any]:
    """What the processor in `folder` tells its image processor beside that one's own file: a family's module has a
    function of this name where there is any."""
    processor = load_processor(folder, {})
    if processor is None or processor.name not in FAMILIES:
        return {}
    module, _ = _place(processor)
    tell = getattr(module, "image_options", None)
    found: dict[str, Any] = tell(processor) if tell else {}
    return found


def processor_digest(folder: Path) -> str:
    """Of all that decides what a folder's processors make of a file, wherever it is said."""
    found, told = load_processor(folder, {}), image_options(folder)
    parts = [found.image, found.sound, found.video] if found else []
    return digest_bytes(msgspec.json.encode([*parts, told] if told else parts, order="sorted"))


def _place(processor: Processor) -> tuple[Any, str]:
    """The module of a family, and the name of its function there."""
    module_name, _, attribute = FAMILIES[processor.name].partition(":")
    return importlib.import_module(f"{_HERE}.{module_name}"), attribute
