"""Tokenizers of SentencePiece families (Llama 2, Gemma): our engine gives the package's ids and masks."""

import json
import random
from typing import Any

import pyarrow as pa
import pytest

from postmill import _native

REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, REPLACE]}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
PIECES = [
    "the",
    " mill",
    "mill",
    "  ",
    " ",
    "\n",
    "<s>",
    "</s>",
    "\u2581",
    "é",
    "中文",
    "😀",
    "ab",
    "ba",
    ">",
    "</",
    "\x01",
    " the" * 30,
    "ab" * 10,
    "ba" * 40,
]


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}


KINDS = {
    "Llama 2": (PREPEND, None),
    "Gemma": (REPLACE, SPLIT),
    "always": (None, metaspace("always")),
    "first": (None, metaspace("first")),
    "never": (None, metaspace("never")),
}


def tokenizer(normalizer: Any, pre_tokenizer: Any, **model: Any) -> bytes:
    """Bytes, some characters and some merges, of which two reach over a space."""
    merges = [["t", "h"], ["th", "e"], ["▁", "▁"], ["▁▁", "▁"], ["l", "l"], ["m", "i"], ["mi", "ll"], ["▁", "mill"]]
    merges += [["a", "b"], ["b", "a"], [">", "▁"], [">▁", "<"], ["▁", "th"], ["▁th", "e"], ["\n", "\n"]]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁themilab>中\n</"]
    names += ["".join(pair) for pair in merges]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    settings = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "dropout": None}
    file = {
        "version": "1.0",
        "added_tokens": [{"id": number, "content": names[number], **flags} for number in range(3)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": settings | {"vocab": {name: id for id, name in enumerate(names)}, "merges": merges} | model,
    }
    return json.dumps(file).encode()


def both(file: bytes, **options: Any) -> list[_native.ChatEncoder]:
    return [_native.ChatEncoder(file, engine=engine, **options) for engine in ("auto", "tokenizers")]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_the_package(kind: str) -> None:
    own, package = both(tokenizer(*KINDS[kind]))
    assert own.engine.startswith("postmill char bpe") and package.engine.startswith("tokenizers")
    rng = random.Random(3)
    for _ in range(400):
        text = "".join(rng.choices(PIECES, k=rng.randrange(9)))
        ids, ends = own.encode(text)
        assert ids == package.encode(text)[0], text
        assert ends == sorted(ends) and (ends[-1:] or [0]) == [len(text.encode())]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_many_texts_are_those_of_each(kind: str) -> None:
    file = tokenizer(*KINDS[kind])
    own, package = _native.Tokenizer(file), _native.ChatEncoder(file, engine="tokenizers")
    assert own.engine.startswith("postmill char bpe") and own.refused is None
    rng = random.Random(4)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(9))) for _ in range(200)]
    for threads in (1, 3, 1):  # the third time every word was seen before
        made = own.encode_batch(texts, threads=threads)
        for number, text in enumerate(texts):
            ids, ends = package.encode(text)
            assert memoryview(made[number]).tolist() == ids, text
            if text.isascii():  # elsewhere the package gives ends of characters
                assert memoryview(own.encode_with_ends(text)[1]).tolist() == ends, text


@pytest.mark.parametrize("kind", KINDS)
def test_masks_are_those_of_the_package(kind: str) -> None:
    template = (
        "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    rng = random.Random(5)
    rows = []
    for _ in range(60):
        texts = ["".join(rng.choices(PIECES, k=1 + rng.randrange(6))) + "x" for _ in range(4)]
        rows.append(
            {"messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]}
        )
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    made = [
        pa.record_batch(encoder.encode_chunk(data, "x", 0, 1, 0)[0]).to_pylist()
        for encoder in both(tokenizer(*KINDS[kind]), bos="<s>", eos="</s>", template=template)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "change", [{"byte_fallback": False}, {"ignore_merges": True}, {"merges": [["<0x41>", "a"]]}], ids=str
)
def test_what_is_not_known_for_certain_is_left_to_the_package(change: dict[str, Any]) -> None:
    names = {"<0x41>a": 999} if "merges" in change else {}
    file = json.loads(tokenizer(*KINDS["Gemma"], **change))
    file["model"]["vocab"] |= names
    assert _native.ChatEncoder(json.dumps(file).encode()).engine.startswith("tokenizers")
