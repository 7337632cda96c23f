"""Pictures in requests: their bytes, from data URIs alone, and their pixels.

Nothing is fetched and no file is read, whatever a request says: an address would make the server ask others, inside its
network too, on behalf of whoever asks it.
"""

import base64
import binascii
from typing import Any

from postmill.io.errors import ArtifactError
from postmill.stages.serve.errors import ApiError, invalid, unsupported
from postmill.stages.shared.media.decode import decode

KINDS = ("image_url", "image")
MOST_PICTURES = 64
"""In one request."""
MOST_PIXELS = 1 << 26
"""Of one picture: 8,192 by 8,192, 200 MB once it is decoded."""


def read_picture(part: dict[str, Any], place: str) -> dict[str, Any]:
    """A part with a picture, OpenAI's `image_url` or Anthropic's base64 `source`, as a part with its bytes.

    Raises ApiError (400).
    """
    source = part.get("source")
    if isinstance(source, dict):
        return {"type": "image", "image": _from_source(source, f"{place}.source"), "place": place}
    url = part.get("image_url", part.get("url"))
    url = url.get("url") if isinstance(url, dict) else url
    if not isinstance(url, str):
        raise invalid(place, f"{place}: expected image_url with a url.")
    head, comma, body = url.partition(",")
    if not url.startswith("data:"):
        raise unsupported(place, f"{place}: addresses and files are not read; send the picture as a data URI.")
    if not comma or not head.endswith(";base64"):
        raise invalid(place, f"{place}: expected data:image/png;base64,...")
    return {"type": "image", "image": _bytes(body, place), "place": place}


def _from_source(source: dict[str, Any], place: str) -> bytes:
    if source.get("type") != "base64":
        raise unsupported(place, f"{place}: {source.get('type')!r} is not read; send the picture as base64.")
    data = source.get("data")
    if not isinstance(data, str):
        raise invalid(place, f"{place}: expected data in base64.")
    return _bytes(data, place)


def _bytes(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(place, f"{place}: the data is not base64.") from None


def check_count(messages: list[dict[str, Any]]) -> None:
    """Raises ApiError (400) for a conversation with too many pictures."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    found = sum(part["type"] == "image" for part in parts)
    if found > MOST_PICTURES:
        raise invalid("messages", f"messages: {found} pictures; the most is {MOST_PICTURES}.")


def with_pixels(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as processors read it: parts everywhere, pictures decoded. Raises ApiError (400)."""
    return [message | {"content": [_decoded(part) for part in _parts(message["content"])]} for message in messages]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


def _decoded(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    try:
        return {"type": "image", "image": decode(part["image"], part["place"], MOST_PIXELS)}
    except ArtifactError as error:
        raise ApiError(400, "invalid_image", f"{error}.", part["place"]) from None
