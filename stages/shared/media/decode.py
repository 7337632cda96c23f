"""From the bytes of a picture to its pixels."""

import io
from typing import Any

from postmill.io.errors import BAD_DATA, ArtifactError


def decode(data: bytes, place: str) -> Any:
    """A picture as PIL has it, in three colours, upright. `place` is what the message calls it.

    Raises ArtifactError (65) for one that is damaged or would take gigabytes.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        what = " ".join(str(error).split())
        raise ArtifactError(
            f"{place}: cannot be decoded ({what}); get it again or leave its rows out", BAD_DATA
        ) from error
