"""The families whose pictures, sounds and videos are understood, by the class of their processor."""

import importlib
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.media.processor import Processor, load_processor

_HERE = "postmill.stages.shared.media.families"
FAMILIES = {
    "Qwen2AudioProcessor": "qwen_audio:family",
    "Qwen2VLProcessor": "qwen_vl:qwen2",
    "Qwen2_5_VLProcessor": "qwen_vl:qwen2_5",
    "Qwen3VLProcessor": "qwen_vl:qwen3",
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
    place = FAMILIES.get(processor.name)
    if place is None:
        known = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"{folder}: no rule for the pictures of {processor.name}; known are {known}", USAGE)
    module_name, _, attribute = place.partition(":")
    module = importlib.import_module(f"{_HERE}.{module_name}")
    return Family(processor, getattr(module, attribute)(processor), getattr(module, "TEMPLATE", None))
