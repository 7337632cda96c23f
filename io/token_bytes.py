"""What each token of a vocabulary writes, in bytes: what two tokenizers have in common.

Byte-level vocabularies (GPT-2 and after) and those of SentencePiece, with a mark for a space and pieces for single
bytes, are read from `tokenizer.json`. A special token writes nothing that a text could hold.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from postmill.io.errors import MISMATCH, ArtifactError
from postmill.io.json_file import load_json
from postmill.io.tekken import byte_letters

_SPACE = "\u2581"
_SPECIAL = b"\xff\xff"
_BYTE = b"\xff\xfe"
"""Two bytes that no UTF-8 has."""


class TokenBytes(NamedTuple):
    """By id; empty where there is no token."""

    text: list[bytes]
    """What it adds to a text."""
    key: list[bytes]
    """The same, but for pieces of one byte that have a name of their own beside the letter: two tokens of a vocabulary
    have two keys."""
    special: frozenset[int]
    """Ids of special tokens."""


def read_token_bytes(folder: Path) -> TokenBytes:
    """Of the tokenizer in `folder`. Raises ArtifactError: (66) no tokenizer.json, (78) of another kind than the two."""
    path = folder / "tokenizer.json"
    said = load_json(path)
    model = said.get("model") or {}
    vocab = model.get("vocab") or {}
    names = dict(vocab) if isinstance(vocab, dict) else {piece[0]: n for n, piece in enumerate(vocab)}
    parts = json.dumps([said.get("decoder"), said.get("pre_tokenizer")])
    if '"ByteLevel"' in parts:
        letters = {letter: number for number, letter in enumerate(byte_letters())}
        known = {n: _byte_level(name, letters) for name, n in names.items()}
    elif _SPACE in json.dumps(said.get("decoder"), ensure_ascii=False) or '"Metaspace"' in parts:
        known = {n: _piece(name) for name, n in names.items()}
    else:
        raise ArtifactError(
            f"{path}: its tokens are neither of bytes nor of SentencePiece, so they cannot be laid beside those of"
            " another tokenizer; use a teacher of the student's own",
            MISMATCH,
        )
    added: list[dict[str, Any]] = said.get("added_tokens") or []
    for token in added:
        content = token["content"].encode()
        known[token["id"]] = ((_SPECIAL + content,) if token.get("special") else (content,)) * 2
    size = max(known, default=-1) + 1
    empty = (b"", b"")
    return TokenBytes(
        text=[known.get(n, empty)[0] for n in range(size)],
        key=[known.get(n, empty)[1] for n in range(size)],
        special=frozenset(token["id"] for token in added if token.get("special")),
    )


def shared_tokens(mine: TokenBytes, other: TokenBytes) -> list[int]:
    """For each id of `mine` the id of the token of `other` that writes the same, or -1."""
    of_key: dict[bytes, int] = {}
    for number, key in enumerate(other.key):
        if key:
            of_key.setdefault(key, number)
    taken: set[int] = set()
    found = []
    for key in mine.key:
        number = of_key.get(key, -1) if key else -1
        found.append(-1 if number in taken else number)
        taken.add(number)
    return found


def _byte_level(name: str, letters: dict[str, int]) -> tuple[bytes, bytes]:
    found = bytes(letters[letter] for letter in name) if all(letter in letters for letter in name) else name.encode()
    return found, found


def _piece(name: str) -> tuple[bytes, bytes]:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        byte = bytes.fromhex(name[3:5])
        return byte, byte if byte >= b"\x80" else _BYTE + byte
    found = name.replace(_SPACE, " ").encode()
    return found, found
