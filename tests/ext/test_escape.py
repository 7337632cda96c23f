"""`--special-text escape`: nothing a row says becomes a special token, and what is encoded is still the row's text."""

import json
import random
from pathlib import Path
from typing import Any

import assets
import pyarrow as pa
import pytest
import tiny_tokenizer

from postmill._native import ChatEncoder, NativeError
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.run import make_encoder
from postmill.stages.tokenize.tokenizer import choose_templates, load_tokenizer


def encoder(folder: Path, **options: Any) -> ChatEncoder:
    model = load_tokenizer(folder)
    cfg = Tokenize(date="2026-01-02", **options)
    return make_encoder(cfg, model, choose_templates(model, "", None), [])


def encode(made: ChatEncoder, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found: list[dict[str, Any]] = pa.record_batch(made.encode_chunk(data, "x.jsonl", 0, 1, 0)[0]).to_pylist()
    return found


def specials(folder: Path) -> dict[str, int]:
    added = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    return {token["content"]: token["id"] for token in added if token["special"]}


@pytest.fixture(scope="module", params=["tiny", "smollm2", "qwen3", "llama31"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tiny":
        return tiny_tokenizer.write_tokenizer(tmp_path_factory.mktemp("tiny"))
    fetch = {
        "smollm2": assets.smollm2,
        "qwen3": assets.qwen3_tokenizer,
        "llama31": assets.llama31_tokenizer,
    }[request.param]
    found = fetch()
    if found is None:
        pytest.skip(f"{request.param}: not to be had here")
    return found


def hostile(rng: random.Random, tokens: list[str]) -> str:
    pieces = [*tokens[:6], *(token[: rng.randint(1, len(token))] for token in tokens[:6])]
    pieces += ["<", "|", ">", " ", "\n", "hello", "日本", "\ufdd0", "</think>", "end|>", "im_end|>"]
    return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 8)))


def test_no_text_of_a_row_becomes_a_special_token(folder: Path) -> None:
    known = specials(folder)
    escaping, keeping = encoder(folder, special_text="escape"), encoder(folder)
    rng = random.Random(7)
    for _ in range(60):
        texts = [hostile(rng, list(known)) for _ in range(4)]
        roles = ["user", "assistant"] * 2
        row = {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]}
        neutral = {"messages": [{"role": role, "content": "neutral"} for role in roles]}
        [made], [plain], [kept] = encode(escaping, row), encode(keeping, neutral), encode(keeping, row)
        count = [sum(i == id for i in made["input_ids"]) for id in known.values()]
        assert count == [sum(i == id for i in plain["input_ids"]) for id in known.values()], texts
        assert escaping.read(made["input_ids"]) == keeping.read(kept["input_ids"]), (
            "the text is the same, marks and all"
        )
        trained = [escaping.read(made["input_ids"][s["start"] : s["end"]]) for s in made["spans"]]
        kept_text = escaping.read(made["input_ids"])
        assert all(text in kept_text for text in trained) and len(made["turns"]) == len(plain["turns"])


def test_rows_without_look_alikes_are_as_ever(folder: Path) -> None:
    rows = [
        {"query": "2 < 3 and <b>bold</b> |>", "response": "yes <"},
        {"messages": [{"role": "user", "content": "語"}, {"role": "assistant", "content": "x\n"}]},
    ]
    assert encode(encoder(folder, special_text="escape"), *rows) == encode(encoder(folder), *rows)


def test_escaped_text_has_the_ids_of_transformers_without_special_tokens(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    special = next(iter(specials(folder)))
    for text in (f"what is {special}?", special, f"{special}{special} <", f"a\n{special}\nb"):
        [made] = encode(encoder(folder, special_text="escape"), {"text": text})
        wanted = oracle(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = made["input_ids"]
        start = next(k for k in range(len(ids)) if ids[k : k + len(wanted)] == wanted)
        assert start <= 1 and len(ids) - len(wanted) <= 2  # what surrounds a text


def test_names_of_tools_and_pieces_of_contents_are_escaped_too(tmp_path: Path) -> None:
    folder = tiny_tokenizer.write_tokenizer(tmp_path)
    content = [{"type": "text", "text": "a<|im_"}, {"type": "text", "text": "end|>b"}]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": content, "loss": [True, False]}]
    made = encoder(folder, special_text="escape")
    [row] = encode(made, {"messages": messages})
    assert [i for i in row["input_ids"] if i >= 261] == [261, 262, 261, 262]
    trained = [made.read(row["input_ids"][s["start"] : s["end"]]) for s in row["spans"]]
    assert trained == ["a<|im_", "<|im_end|>"], "the pieces keep their marks, and who learns one learns to end the turn"


def test_a_template_that_spells_characters_out_is_refused(tmp_path: Path) -> None:
    folder = tiny_tokenizer.write_tokenizer(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}<|im_start|>{{ m|string }}<|im_end|>{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(NativeError):
        encode(encoder(folder, special_text="escape"), {"query": "<|im_end|>", "response": "a"})
