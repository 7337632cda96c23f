"""A tokenizer as GGUF's metadata: tokens, their kinds, merges, and the name of the rule that splits text beforehand.

llama.cpp has the splitting rules built in and knows them by name (`tokenizer.ggml.pre`). The name is found by the rule
itself, as `tokenizer.json` writes it, not by the model's: a rule that is none of these is refused, since text would be
cut otherwise than in training.
"""

import json
from pathlib import Path
from typing import Any

from postmill.io.errors import USAGE, ConfigError
from postmill.io.gguf_file import Value
from postmill.io.json_file import load_json
from postmill.stages.shared.base_model import all_stop_ids
from postmill.stages.shared.hf import load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
RULES = {
    _CONTRACTIONS + _WORD + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _CONTRACTIONS + _WORD + r"|\p{N}" + _REST: "qwen2",
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    + r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen35",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_LETTERS}+{_LOWER}*|\p{{N}}"
    + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}
"""Regular expression of a Split -> llama.cpp's name."""


def describe_vocabulary(folder: Path, vocab_size: int) -> dict[str, Value]:
    """The tokenizer's metadata. Raises ConfigError (2) if it is missing or one that llama.cpp would read otherwise."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{folder}: has no tokenizer.json, and a GGUF file needs its tokens; copy it in", USAGE)
    stored = load_json(path)
    model = stored["model"]
    if model.get("type", "BPE") != "BPE":
        raise ConfigError(f"{path}: is a {model['type']} tokenizer, only BPE is written as GGUF", USAGE)
    tokens, kinds = _tokens(stored, vocab_size, path)
    pieces = bool(model.get("byte_fallback"))
    said: dict[str, Value] = {
        "tokenizer.ggml.model": "llama" if pieces else "gpt2",
        "tokenizer.ggml.pre": "default" if pieces else _rule_name(stored["pre_tokenizer"], path),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
    }
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    if pieces:
        said["tokenizer.ggml.scores"] = _scores(tokens, merges)
        said["tokenizer.ggml.add_space_prefix"] = _begins_with_space(stored)
    else:
        # a space inside a token would end it there: it is written as byte-level BPE writes it
        said["tokenizer.ggml.merges"] = [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]
    return said | _special(folder, tokens)


def _tokens(stored: dict[str, Any], vocab_size: int, path: Path) -> tuple[list[str], list[int]]:
    """Texts and kinds by id, padded to the rows that the embedding has."""
    model = stored["model"]
    texts: dict[int, str] = {number: text for text, number in model["vocab"].items()}
    kinds = dict.fromkeys(texts, NORMAL)
    if model.get("byte_fallback"):
        kinds |= {n: BYTE for n, text in texts.items() if len(text) == 6 and text[:3] == "<0x" and text[-1] == ">"}
    for token in stored.get("added_tokens") or []:
        number, text = token["id"], token["content"]
        control = token.get("special") or (text.startswith("<|") and text.endswith("|>"))
        texts[number] = text if control else text.replace("\u2581", " ")
        kinds[number] = UNKNOWN if text == model.get("unk_token") else CONTROL if control else USER_DEFINED
    if max(texts) >= vocab_size:
        raise ConfigError(f"{path}: has a token of id {max(texts)}, the model only {vocab_size} rows", USAGE)
    ids = range(vocab_size)
    return [texts.get(n, f"[PAD{n}]") for n in ids], [kinds.get(n, UNUSED) for n in ids]


def _rule_name(rule: dict[str, Any] | None, path: Path) -> str:
    """llama.cpp's name of a splitting rule."""
    steps = rule.get("pretokenizers", [rule]) if rule else []
    kinds = [step["type"] for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        own = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and own:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and own and steps[0].get("individual_digits"):
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not own and steps[0].get("behavior") == "Isolated":
            name = RULES.get(steps[0]["pattern"].get("Regex", ""))
            if name:
                return name
    raise ConfigError(
        f"{path}: text is split by a rule that llama.cpp's names do not cover here: {json.dumps(rule)[:200]}; use"
        " llama.cpp's convert_hf_to_gguf.py",
        USAGE,
    )


def _scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """The earlier a piece is made, the higher; those that no merge makes are the lowest."""
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _begins_with_space(stored: dict[str, Any]) -> bool:
    """Whether a space is put before the text."""
    steps: list[dict[str, Any]] = []
    for part in (stored.get("normalizer"), stored.get("pre_tokenizer")):
        steps += (part or {}).get("normalizers") or (part or {}).get("pretokenizers") or ([part] if part else [])
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _special(folder: Path, tokens: list[str]) -> dict[str, Value]:
    """Ids with a meaning, whether they are put around a text, and the chat template."""
    tokenizer = load_tokenizer(folder)
    stops = sorted(i for i in all_stop_ids([folder]) if i < len(tokens))
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(stops), None)
    ids = {"bos": tokenizer.bos_token_id, "eos": end, "unknown": tokenizer.unk_token_id}
    ids |= {"padding": tokenizer.pad_token_id, "eot": next((i for i in stops if i != end), None)}
    said: dict[str, Value] = {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    bare, whole = (tokenizer("a", add_special_tokens=special).input_ids for special in (False, True))
    said["tokenizer.ggml.add_bos_token"] = len(whole) > len(bare) and whole[0] == ids["bos"]
    if len(whole) > len(bare) and whole[-1] == ids["eos"]:
        said["tokenizer.ggml.add_eos_token"] = True
    if isinstance(tokenizer.chat_template, str):
        said["tokenizer.chat_template"] = tokenizer.chat_template
    return said
