"""Ids are those of transformers' `apply_chat_template(tokenize=True)`, on real and on hostile rows; masks are TRL's.

The oracle sees the same messages that the template sees: raw rows in Hugging Face form, as `normalize_lines` gives
them (what makes these out of raw rows is tested in tests/ext/test_rows.py).
"""

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import assets
import pyarrow as pa
import pytest

from postmill import _native
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.run import make_encoder
from postmill.stages.tokenize.tokenizer import choose_templates, load_tokenizer

from . import hostile

transformers = pytest.importorskip("transformers")

MODELS = {"smollm2": assets.smollm2, "qwen3": assets.qwen3_tokenizer, "llama31": assets.llama31_tokenizer}
FILES = [
    "alpaca_en_demo.json",
    "alpaca_zh_demo.json",
    "glaive_toolcall_en_demo.json",
    "glaive_toolcall_zh_demo.json",
    "reason_tool_use_demo_50.jsonl",
]
# Compiled once a process: they are what makes the fast sample slow.
DATE = "2026-11-22"


@functools.cache
def folder(model: str) -> Path:
    path = MODELS[model]()
    if path is None:
        pytest.skip(f"{model}: cannot be fetched here")
    return path


@functools.cache
def reference(model: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder(model))
    import datetime

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Day":
            return cls(2026, 11, 22, tzinfo=tz)

    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = Day
    return tokenizer


@functools.cache
def encoder(model: str, template: str = "", **options: Any) -> _native.ChatEncoder:
    files = load_tokenizer(folder(model))
    chosen = choose_templates(files, "", Path(template) if template else None)
    given: dict[str, Any] = {"date": DATE, "unwritten": "allow"} | options
    return make_encoder(Tokenize(**given), files, chosen, [])


def raw_lines(name: str) -> list[bytes]:
    data = assets.llamafactory_data()
    if data is None:
        pytest.skip("LLaMA-Factory's data cannot be fetched here")
    text = (data / name).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def encode(encoder: _native.ChatEncoder, lines: Iterable[bytes]) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    rows, ledger, _ = encoder.encode_chunk(b"\n".join(lines) + b"\n", "rows.jsonl", 0, 1, 0)
    return pa.record_batch(rows), pa.record_batch(ledger)


def oracle_row(line: bytes) -> dict[str, Any]:
    """The row in Hugging Face form, its objects ordered as in the raw row: `normalize_lines` sorts keys."""
    known: dict[str, Any] = {}

    def learn(value: Any) -> None:
        if isinstance(value, str) and value[:1] in "[{":
            try:
                value = json.loads(value)
            except ValueError:
                return
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            learn(item)
        if isinstance(value, dict):
            known[json.dumps(value, sort_keys=True)] = value

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            found = known.get(json.dumps(value, sort_keys=True))
            # a bare definition of a tool gets its wrapper from us, its type first
            names = sorted(value, key=lambda key: key != "type")
            return found if found is not None else {key: restored(value[key]) for key in names}
        return [restored(item) for item in value] if isinstance(value, list) else value

    learn(json.loads(line))
    return restored(json.loads(_native.normalize_lines(line + b"\n", "x")[0]))


def compare_ids(model: str, lines: list[bytes]) -> tuple[int, int]:
    """Rows and tokens that are equal; fails at the first that is not. What transformers refuses, we must refuse."""
    tokenizer, ours = reference(model), encoder(model, on_bad_row="skip")
    rows, ledger = encode(ours, lines)
    ids = dict(zip(rows["line"].to_pylist(), rows["input_ids"].to_pylist(), strict=True))
    dropped = dict(zip(ledger["line"].to_pylist(), ledger["reason"].to_pylist(), strict=True))
    tokens = 0
    for number, line in enumerate(lines, 1):
        row = oracle_row(line)
        try:
            expected = tokenizer.apply_chat_template(
                row["messages"], tools=row.get("tools"), tokenize=True, return_dict=False
            )
        except Exception:
            assert dropped.get(number) == "template", (model, number, "transformers refuses this row")
            continue
        if dropped.get(number) == "nothing_to_train":
            continue
        assert ids.get(number) == expected, (model, number, dropped.get(number), line[:300])
        tokens += len(expected)
    return len(ids), tokens


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", FILES)
def test_ids_on_real_rows(model: str, name: str) -> None:
    rows, tokens = compare_ids(model, raw_lines(name)[:40])
    assert rows >= 35 and tokens > 1000


@pytest.mark.parametrize("model", MODELS)
def test_ids_on_hostile_rows(model: str) -> None:
    rows = hostile.conversations(150)
    compared, _ = compare_ids(model, [json.dumps(row, ensure_ascii=False).encode() for row in rows])
    assert compared > 60


@pytest.mark.parametrize("model", MODELS)
def test_prompts_are_those_of_add_generation_prompt(model: str) -> None:
    """Conversations without their last answer, and with half of it (`continue_final_message`)."""
    tokenizer, ours = reference(model), encoder(model, for_="prompt", on_bad_row="skip")
    asked, begun = [], []
    for line in [*raw_lines("alpaca_en_demo.json")[:20], *raw_lines("reason_tool_use_demo_50.jsonl")[:10]]:
        row = oracle_row(line)
        last = max(i for i, message in enumerate(row["messages"]) if message["role"] in ("user", "tool")) + 1
        shared = {"tools": row["tools"]} if row.get("tools") else {}
        asked.append({"prompt": row["messages"][:last], **shared})
        answer = row["messages"][last:]
        if answer and answer[0]["content"] and "<think>" not in answer[0]["content"]:
            half = {"role": "assistant", "content": answer[0]["content"][:20].strip()}
            begun.append({"prompt": [*row["messages"][:last], half], **shared})
    assert len(asked) == 30 and len(begun) > 15
    for rows, how in ((asked, {"add_generation_prompt": True}), (begun, {"continue_final_message": True})):
        found, ledger = encode(ours, [json.dumps(row, ensure_ascii=False).encode() for row in rows])
        assert ledger.num_rows == 0
        for row, ids in zip(rows, found["input_ids"].to_pylist(), strict=True):
            given = {"tools": row.get("tools"), "tokenize": True, "return_dict": False, **how}
            assert ids == tokenizer.apply_chat_template(row["prompt"], **given), (model, how, row)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", MODELS)
def test_ids_on_every_row(model: str) -> None:
    rows = tokens = 0
    for lines in [raw_lines(name) for name in FILES]:
        some = compare_ids(model, lines)
        rows, tokens = rows + some[0], tokens + some[1]
    some = compare_ids(
        model, [json.dumps(row, ensure_ascii=False).encode() for row in hostile.conversations(5000, seed=11)]
    )
    rows, tokens = rows + some[0], tokens + some[1]
    print(f"\n{model}: {rows} rows, {tokens} tokens equal")
    assert rows > 5000


TRL_TWINS = {"qwen3": "qwen3_training.jinja", "llama31": "llama3_training.jinja", "smollm2": "qwen2_5_training.jinja"}


@pytest.mark.parametrize("model", MODELS)
def test_masks_equal_trls(model: str) -> None:
    """TRL marks what is generated with `{% generation %}`; we find it in the template that has no marks.

    Some twins also mark the newline that the generation prompt gives, or that follows the closing token. The model
    never generates either, so ours do not.
    """
    trl = pytest.importorskip("trl")
    training = Path(trl.__file__).parent / "chat_templates" / TRL_TWINS[model]
    plain = training.with_name(training.name.replace("_training", ""))
    if not training.is_file() or not plain.is_file():
        pytest.skip(f"this TRL has no {training.name}")
    tokenizer = reference(model)
    lines = [line for name in FILES[:2] for line in raw_lines(name)[:25]]
    rows, _ = encode(encoder(model, str(plain)), lines)
    template = training.read_text(encoding="utf-8")
    for number, ids, spans in zip(
        rows["line"].to_pylist(), rows["input_ids"].to_pylist(), rows["spans"].to_pylist(), strict=True
    ):
        row = oracle_row(lines[number - 1])
        expected = tokenizer.apply_chat_template(
            row["messages"], chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = [0] * len(ids)
        for span in spans:
            mask[span["start"] : span["end"]] = [1] * (span["end"] - span["start"])
        assert ids == expected["input_ids"]
        for at, (our, their) in enumerate(zip(mask, expected["assistant_masks"], strict=True)):
            beside = mask[at + 1 : at + 2] == [1] or mask[at - 1 : at] == [1]
            framing = not our and beside and tokenizer.decode(ids[at]) == "\n"
            assert our == their or framing, (model, number, at, tokenizer.decode(ids[at - 1 : at + 5]))
