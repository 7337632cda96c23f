"""Pictures and sounds in requests: their bytes, from data URIs and base64 alone, their pixels and samples.

Nothing is fetched and no file is read, whatever a request says: an address would make the server ask others, inside its
network too, on behalf of whoever asks it.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any

from postmill.io.errors import ArtifactError, ConfigError
from postmill.stages.serve.errors import ApiError, invalid, unsupported
from postmill.stages.shared.media.decode import decode

KINDS = ("image_url", "image", "input_audio")
MOST_MEDIA = 64
"""Pictures and sounds in one request."""


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


def read_sound(part: dict[str, Any], place: str) -> dict[str, Any]:
    """OpenAI's `input_audio` as a part with its bytes. Raises ApiError (400)."""
    found = part.get("input_audio")
    data = found.get("data") if isinstance(found, dict) else None
    if not isinstance(data, str):
        raise invalid(place, f"{place}: expected input_audio with data in base64.")
    return {"type": "audio", "audio": _bytes(data, f"{place}.input_audio.data"), "place": place}


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
    """Raises ApiError (400) for a conversation with too many pictures and sounds."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    found = sum(part["type"] != "text" for part in parts)
    if found > MOST_MEDIA:
        raise invalid("messages", f"messages: {found} pictures and sounds; the most is {MOST_MEDIA}.")


def decoded(messages: list[dict[str, Any]], hear: Callable[[bytes, str], Any]) -> list[dict[str, Any]]:
    """The conversation as processors read it: parts everywhere, pictures and sounds decoded. Raises ApiError (400).

    hear: from the bytes of a sound and its place to what the model hears.
    """
    return [
        message | {"content": [_decoded(part, hear) for part in _parts(message["content"])]} for message in messages
    ]


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


def _decoded(part: dict[str, Any], hear: Callable[[bytes, str], Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    try:
        if part["type"] == "audio":
            return {"type": "audio", "audio": hear(part["audio"], part["place"])}
        return {"type": "image", "image": decode(part["image"], part["place"])}
    except (ArtifactError, ConfigError) as error:
        raise ApiError(400, f"invalid_{part['type']}", f"{error}.", part["place"]) from None
