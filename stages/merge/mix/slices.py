"""Some layers of a model, as they are written on the command line."""

import re

import msgspec


class Slice(msgspec.Struct, frozen=True):
    """Layers first..end (not taken) of a model."""

    model: int
    first: int
    end: int


def parse_slice(text: str) -> Slice:
    """`1:8-24`. Raises ValueError."""
    match = re.fullmatch(r"(\d+):(\d+)-(\d+)", text.strip())
    if not match or int(match[2]) >= int(match[3]):
        raise ValueError(f"layers {text!r}: expected model:from-to like 1:8-24, counted from 0 and `to` not taken")
    return Slice(int(match[1]), int(match[2]), int(match[3]))
