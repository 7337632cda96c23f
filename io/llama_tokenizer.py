"""Folders whose tokenizer transformers 5 builds anew, instead of taking `tokenizer.json` as it is.

Where `tokenizer_config.json` names LlamaTokenizer, only the vocabulary, merges, added tokens and post-processor of the
file count: spaces are written by a Metaspace pre-tokenizer, also behind special tokens. Checkpoints of older releases
say in the file that a space comes before every text, which gives other ids after special tokens.
"""

import json
from pathlib import Path
from typing import Any

from postmill.io.json_file import load_json

_MODEL_TYPES = ("llama", "idefics", "idefics2")
"""Families for which transformers 5 takes this class at its word. For most others it takes the file."""


def is_rebuilt(folder: Path, config: dict[str, Any]) -> bool:
    """Whether transformers builds the tokenizer of this folder anew. `config`: of the tokenizer."""
    if str(config.get("tokenizer_class", "")).removesuffix("Fast") != "LlamaTokenizer":
        return False
    model = folder / "config.json"
    return not model.is_file() or load_json(model).get("model_type") in _MODEL_TYPES


def rebuilt(tokenizer_json: bytes, config: dict[str, Any]) -> bytes:
    """The file as transformers 5 has it in memory. A byte-level one stays as it is."""
    file = json.loads(tokenizer_json)
    if file.get("model", {}).get("type") != "BPE" or '"ByteLevel"' in json.dumps(file.get("pre_tokenizer")):
        return tokenizer_json
    prefix = config.get("add_prefix_space")
    scheme = "never" if prefix is False else "always" if config.get("legacy") else "first"
    file["normalizer"] = None
    file["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    file["model"] |= {"fuse_unk": True, "byte_fallback": True, "dropout": None}
    return json.dumps(file, ensure_ascii=False).encode()
