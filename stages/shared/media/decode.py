"""From the bytes of a picture to its pixels."""

import io
from typing import Any

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.media import MOST_PIXELS

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP")
"""What `tokenize` reads, too."""


def decode(data: bytes, place: str) -> Any:
    """A picture as PIL has it, in three colours, upright. `place` is what the message calls it.

    Raises ArtifactError (65) for one that is damaged, has more than MOST_PIXELS, or that processors read wrong: 16 bits
    a channel, several frames. Size and form are looked at before anything is decoded.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            fault = _fault(image)
            if fault:
                raise ArtifactError(f"{place}: {fault}", BAD_DATA)
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, ArtifactError):
            raise
        what = " ".join(str(error).split()) if str(error).isascii() and "BytesIO" not in str(error) else "no picture"
        raise ArtifactError(
            f"{place}: cannot be decoded ({what}); get it again or leave its rows out", BAD_DATA
        ) from error


def _fault(image: Any) -> str:
    width, height = image.size
    if width * height > MOST_PIXELS:
        shrink = f"mogrify -resize '{MOST_PIXELS}@>' FILE"
        return f"the picture has {width} by {height} pixels, the most is {MOST_PIXELS}; shrink it first: {shrink}"
    if image.mode.startswith("I"):
        return "the picture has 16 bits a channel; save it with 8"
    if getattr(image, "n_frames", 1) > 1:
        return "the picture has several frames; save the one that is meant as a picture of its own"
    return ""
