"""Conversations with pictures as the templates of processors read them: each content is a list of parts."""

from collections.abc import Sequence
from typing import Any

TAG = "<image>"


def to_parts(messages: list[dict[str, Any]], pictures: Sequence[Any]) -> list[dict[str, Any]]:
    """`messages` with a picture for each `<image>` of their texts, in order; without pictures that is text."""
    waiting = iter(pictures)

    def parts(text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for index, piece in enumerate(text.split(TAG) if pictures else [text]):
            found += [{"type": "image", "image": next(waiting)}] if index else []
            found += [{"type": "text", "text": piece}] if piece else []
        return found

    return [message | {"content": parts(message["content"])} for message in messages]


def said_token(messages: list[dict[str, Any]], tokens: list[str]) -> str:
    """Which of `tokens` a text says, or an empty string.

    A processor would put a picture there and leave the picture's own place empty.
    """
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    return next((token for token in tokens if any(token in text for text in texts)), "")
