"""Mistral's `tekken.json` as a `tokenizer.json`: the same ids, in the form that everything else reads.

tekken joins the adjacent pair whose joined bytes have the lowest rank; a `tokenizer.json` lists pairs. So each token
gives every pair that makes it, ordered by the ranks of the parts, in the order of the tokens themselves. Special tokens
come first, `<SPECIAL_7>` and the like where the file names fewer than it counts.
"""

import base64
import json
from pathlib import Path
from typing import Any

from postmill.io.errors import ArtifactError
from postmill.io.json_file import load_json

TEKKEN = "tekken.json"
SPECIAL_TEXTS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
"""What Mistral calls its special tokens."""
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def convert(path: Path) -> bytes:
    """The text of the `tokenizer.json`. Raises ArtifactError (65) for another file, or an old one."""
    file = load_json(path)
    try:
        config, specials = file["config"], _specials(file)
        size = config.get("default_vocab_size")
        entries = file["vocab"] if size is None else file["vocab"][: size - len(specials)]
        ranks = {base64.b64decode(entry["token_bytes"]): rank for rank, entry in enumerate(entries)}
        pattern = config["pattern"]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path}: not a tekken.json with special_tokens, vocab and config.pattern "
            f" ({type(error).__name__}: {error}); take the file of a newer release, or a tokenizer.json"
        ) from error
    letters = dict(enumerate(byte_letters()))
    written = {token: token.decode("latin-1").translate(letters) for token in ranks}
    vocab = {text: rank for rank, text in enumerate(specials)}
    vocab |= {written[token]: rank + len(specials) for token, rank in ranks.items()}
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(rank, text) for rank, text in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                _BYTE_LEVEL,
            ],
        },
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [[written[a], written[b]] for a, b in _merges(ranks)],
        },
    }
    return json.dumps(made, ensure_ascii=False).encode()


def _specials(file: dict[str, Any]) -> list[str]:
    """Texts of the special tokens by rank, which must count up from 0."""
    named = sorted((entry["rank"], entry["token_str"]) for entry in file["special_tokens"])
    if [rank for rank, _ in named] != list(range(len(named))):
        raise ValueError("ranks of special_tokens do not count up from 0")
    number = file["config"].get("default_num_special_tokens") or len(named)
    return [text for _, text in named] + [f"<SPECIAL_{rank}>" for rank in range(len(named), number)]


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    merges: list[tuple[bytes, bytes]] = []
    for token in ranks:
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(a, b) for _, _, a, b in sorted(pairs)]
    return merges


def _added(rank: int, text: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": rank, "content": text, **flags, "special": True}


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary. Source: GPT-2's `bytes_to_unicode`."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    hidden = [b for b in range(256) if b not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]
