"""What do offsets, spans and weights cost beside ids alone?

Offsets: one text at a time, ids with the byte where each token ends, against ids; *new*, where each round has a fresh
tokenizer, as a job does, and *again*, where words are remembered from the rounds before. Weights: whole chats (JSON
parsed, template, ids, turns, spans, Arrow) where every turn of the assistant is trained on, and with two strategies
that look at the text, against one weight for everything, which is as near to ids alone as a chat comes, on text seen
before. One thread.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import assets
import conversations
import texts
from harness import Case, Rival

from postmill import _native
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.run import make_encoder
from postmill.stages.tokenize.tokenizer import choose_templates, load_tokenizer

MAX_BYTES = 12_000_000
WEIGHTS = {"one weight": "all", "turns": "default", "two strategies": "default+hermes+ignore_empty_think"}


def offsets(name: str, documents: list[str], tokenizer: Path, is_new: bool) -> Case:
    file = (tokenizer / "tokenizer.json").read_bytes()
    ours = _native.Tokenizer(file)
    amount = sum(len(document.encode()) for document in documents) / 1e6

    def check() -> dict[str, Any]:
        tokens = 0
        for document in documents:
            ids, ends = ours.encode_with_ends(document)
            assert bytes(memoryview(ids)) == bytes(memoryview(ours.encode(document))), "ids differ"
            assert memoryview(ends)[-1] == len(document.encode())
            tokens += len(ids)
        return {"tokens_compared": tokens}

    def prepare() -> None:
        nonlocal ours
        if is_new:
            ours = _native.Tokenizer(file)
            ours.encode("word")

    rivals = [
        Rival(
            "ids and offsets",
            lambda: [ours.encode_with_ends(document) for document in documents],
            amount,
            prepare=prepare,
        ),
        Rival("ids", lambda: [ours.encode(document) for document in documents], amount, prepare=prepare),
    ]
    kind = "new" if is_new else "again"
    return Case(f"offsets/{name}-{kind}", f"{name}, {kind}: ids and offsets, or ids?", "MB", rivals, check, 5)


def weights(rows: list[dict[str, Any]], tokenizer: Path) -> Case:
    import pyarrow as pa

    model = load_tokenizer(tokenizer)
    templates = choose_templates(model, "", None)
    data = b"".join(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n" for row in rows)
    encoders = {name: make_encoder(Tokenize(loss_scale=scale), model, templates, []) for name, scale in WEIGHTS.items()}

    def check() -> dict[str, Any]:
        tables = [pa.table(encoder.encode_chats(data)) for encoder in encoders.values()]
        assert all(table["input_ids"] == tables[0]["input_ids"] for table in tables), "ids differ"
        return {"rows": len(rows)} | {
            f"spans, {name}": sum(len(spans) for spans in table["spans"].to_pylist())
            for name, table in zip(encoders, tables, strict=True)
        }

    rivals = [
        Rival(name, lambda encoder=encoder: encoder.encode_chats(data), len(data) / 1e6)
        for name, encoder in reversed(encoders.items())
    ]
    return Case("weights/chats", "Chats with weights of two strategies, or less?", "MB", rivals, check, 5)


def cases(smoke: bool) -> Iterator[Case]:
    tokenizer, demos = assets.qwen3_tokenizer(), assets.llamafactory_data()
    if tokenizer is None or demos is None:
        yield Case("offsets", "", "MB", [], skip="the tokenizer or the data cannot be fetched here")
        return
    pages = texts.corpora(smoke=smoke)
    for name, documents in pages.items():
        sizes = itertools.accumulate(len(document.encode()) for document in documents)
        budget = 200_000 if smoke else MAX_BYTES
        some = [d for d, size in zip(documents, sizes, strict=True) if size <= budget]
        yield from (offsets(name, some, tokenizer, is_new) for is_new in (True, False))
    yield weights(list(conversations.chats(200 if smoke else 10_000, demos, pages)), tokenizer)
