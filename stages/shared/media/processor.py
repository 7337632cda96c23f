"""A model folder's processor, read without transformers: which family it is of, and its parameters.

The same files win as in transformers: `processor_config.json` over `preprocessor_config.json`.
"""

from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json

PROCESSOR = "processor_config.json"
IMAGE_PROCESSOR = "preprocessor_config.json"
VIDEO_PROCESSOR = "video_preprocessor_config.json"


class Processor(msgspec.Struct, frozen=True):
    """What a folder says of its processor."""

    name: str
    """Its class in transformers."""
    own: dict[str, Any]
    """The processor's parameters."""
    image: dict[str, Any]
    """Its image processor's parameters."""
    sound: dict[str, Any]
    """Its feature extractor's parameters."""
    video: dict[str, Any]
    """Its video processor's parameters."""
    texts: dict[str, str]
    """Special tokens by name: `image_token` and the like."""

    def token(self, name: str, default: str) -> str:
        """The text of a special token."""
        found = self.own.get(name, self.texts.get(name, default))
        return str(found.get("content", default) if isinstance(found, dict) else found)

    def number(self, name: str, default: int | None = None) -> int:
        """A whole number of the image processor, else of the processor. Raises ConfigError (2) where it is missing."""
        found = self.image.get(name, self.own.get(name, default))
        if not isinstance(found, int):
            raise ConfigError(f"{self.name}: {name} is {found!r}, expected a whole number; mend {PROCESSOR}", USAGE)
        return found

    def side(self, name: str = "size", default: int | None = None) -> int:
        """The side of a square that the image processor brings pictures or tiles to."""
        size = self.image.get(name, default)
        if isinstance(size, dict):
            found = {size[key] for key in ("height", "width", "shortest_edge", "longest_edge") if key in size}
            size = found.pop() if len(found) == 1 else None
        if not isinstance(size, int):
            given = self.image.get(name)
            raise ConfigError(f"{self.name}: {name} is {given!r}, expected the side of a square", USAGE)
        return size


def load_processor(folder: Path, texts: dict[str, str]) -> Processor | None:
    """The processor in `folder`; none if it has none, as models of text alone. Raises ArtifactError (65) on damage."""
    own = load_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    image = own.get("image_processor")
    if not isinstance(image, dict):
        image = load_json(folder / IMAGE_PROCESSOR) if (folder / IMAGE_PROCESSOR).is_file() else {}
    name = own.get("processor_class") or image.get("processor_class")
    sound, video = own.get("feature_extractor"), own.get("video_processor")
    if not isinstance(sound, dict):
        sound = image if "hop_length" in image else {}
    if not isinstance(video, dict):
        video = load_json(folder / VIDEO_PROCESSOR) if (folder / VIDEO_PROCESSOR).is_file() else {}
    return Processor(str(name), own, image, sound, video, texts) if name else None
