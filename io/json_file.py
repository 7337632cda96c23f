"""Small JSON files, read and written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import ArtifactError

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What `msgspec.json.decode` raises for bytes that are no JSON: the second for names that are not UTF-8, the third for
too many brackets."""


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a small file. Raises ArtifactError (65) when it is none."""
    try:
        value = msgspec.json.decode(path.read_bytes())
    except NOT_JSON as error:
        raise ArtifactError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: Any) -> None:
    """One JSON document with sorted keys."""
    text = msgspec.json.encode(msgspec.to_builtins(value), order="sorted")
    path.write_bytes(msgspec.json.format(text, indent=2) + b"\n")


def numbered_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Lines of a jsonl file that are not blank, each with its number from 1; a byte order mark is no part of any."""
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            yield number, line
