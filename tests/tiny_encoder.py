"""An encoder of chats on a byte-level tokenizer of 300 ids, and what it made in a form that tests can read."""

import functools
import json
from typing import Any

import pyarrow as pa
import pytest

from postmill import _native

SPECIALS = ["<bos>", "<end>", "<user>", "<bot>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<bot>{{ m.content }}<end>"
    "{% else %}<user>{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@functools.cache
def tokenizer_json() -> bytes:
    """Bytes, a few merges, four special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    merges = [("h", "i"), ("Ġ", "a"), ("o", "b"), ("Ċ", "Ċ"), ("Ã", "©")]
    vocab |= {left + right: len(vocab) + i for i, (left, right) in enumerate(merges)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer.to_str().encode()


def encoder(**options: Any) -> _native.ChatEncoder:
    given = {"template": TEMPLATE, "bos": "<bos>", "eos": "<end>", "special_texts": [("bos_token", "<bos>")]} | options
    return _native.ChatEncoder(tokenizer_json(), **given)


def chat(*texts: str, **columns: Any) -> dict[str, Any]:
    roles = ["user", "assistant"]
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]} | columns


def run(enc: _native.ChatEncoder, *rows: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    batch, ledger, counts = enc.encode_chunk(data, "x.jsonl", 0, 1, 0)
    return pa.record_batch(batch).to_pylist(), pa.record_batch(ledger).to_pylist(), counts


def weights(row: dict[str, Any]) -> list[float]:
    out = [0.0] * row["length"]
    for span in row["spans"]:
        assert span["weight"] != 0 and span["start"] < span["end"]
        out[span["start"] : span["end"]] = [span["weight"]] * (span["end"] - span["start"])
    return out


def shown(enc: _native.ChatEncoder, row: dict[str, Any]) -> list[tuple[str, float]]:
    """The row's text in runs of equal weight."""
    runs: list[tuple[list[int], float]] = []
    for token, weight in zip(row["input_ids"], weights(row), strict=True):
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(token)
        else:
            runs.append(([token], weight))
    return [(enc.read(ids), weight) for ids, weight in runs]
