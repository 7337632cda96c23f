"""Conversations with pictures and sounds as the templates of processors read them: each content is a list of parts."""

import re
from collections.abc import Sequence
from typing import Any

KINDS = ("image", "audio")


def to_parts(
    messages: list[dict[str, Any]], pictures: Sequence[Any], sounds: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """`messages` with a picture for each `<image>` of their texts and a sound for each `<audio>`, in order.

    A tag of which there is nothing is text.
    """
    waiting = {kind: iter(items) for kind, items in zip(KINDS, (pictures, sounds), strict=True) if items}
    tag = re.compile(f"<({'|'.join(waiting)})>" if waiting else r"(?!)()")

    def parts(text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for index, piece in enumerate(tag.split(text)):
            if index % 2:
                found.append({"type": piece, piece: next(waiting[piece])})
            elif piece:
                found.append({"type": "text", "text": piece})
        return found

    return [message | {"content": parts(message["content"])} for message in messages]


def said_token(messages: list[dict[str, Any]], tokens: list[str]) -> str:
    """Which of `tokens` a text says, or an empty string.

    A processor would put a picture there and leave the picture's own place empty.
    """
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    return next((token for token in tokens if any(token in text for text in texts)), "")
