"""Qwen2.5-Omni's thinker, the part that reads and writes text: pictures as in Qwen2.5-VL, sounds as in Qwen2-Audio."""

from pathlib import Path
from typing import Any

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.stages.shared.media.families import qwen_audio, qwen_vl
from postmill.stages.shared.media.processor import Processor


def family(processor: Processor) -> dict[str, Any]:
    """Source: processing_qwen2_5_omni.py. Videos are not read: their sound would have to be, too."""
    seen, heard = qwen_vl.family(processor, "<|IMAGE|>", "<|VIDEO|>"), qwen_audio.family(processor)
    return seen | heard | {"marks": seen["marks"] + heard["marks"]}


def check(folder: Path) -> None:
    """Raises ConfigError (2) for a folder with the talker, which speaks and is not trained here."""
    if (folder / "config.json").is_file() and "thinker_config" in load_json(folder / "config.json"):
        kind = "Qwen2_5OmniThinkerForConditionalGeneration"
        raise ConfigError(
            f"{folder}: the model has a talker beside its thinker; save the thinker alone, by transformers'"
            f" {kind}.from_pretrained(...).save_pretrained(DIR), and its processor beside it",
            USAGE,
        )
