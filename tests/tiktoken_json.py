"""A `tokenizer.json` from a file of tiktoken ranks, for families that ship only those.

tiktoken joins the adjacent pair whose joined bytes have the lowest rank; a `tokenizer.json` lists pairs. So each token
gives every pair that makes it, ordered by the ranks of the parts, in the order of the tokens themselves.
"""

import base64
from pathlib import Path
from typing import Any

QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Bytes and rank of each token."""
    pairs = (line.split() for line in path.read_bytes().splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary. Source: GPT-2's `bytes_to_unicode`."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


def convert(path: Path, regex: str) -> dict[str, Any]:
    """The file as a value: byte-level BPE over NFC text that `regex` cuts, without added tokens."""
    ranks, letters = read_ranks(path), byte_letters()
    written = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
        parts = sorted((ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks)
        merges.extend([written[a], written[b]] for _, _, a, b in parts)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {written[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
