"""The path from rows to tokens, on a byte-level tokenizer of 300 ids and a template of one line."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoder import SPECIALS, TEMPLATE, chat, encoder, run, shown, tokenizer_json, weights

from postmill import _native


def test_every_assistant_turn_and_its_end_are_trained() -> None:
    enc = encoder()
    (row,), ledger, counts = run(enc, chat("a", "b", "c", "d"))
    assert shown(enc, row) == [
        ("<bos><user>a<end><bot>", 0.0), ("b<end>", 1.0), ("<user>c<end><bot>", 0.0), ("d<end>", 1.0),
    ]  # fmt: skip
    assert ledger == [] and counts["kept"] == 1 and row["trained_tokens"] == 4 == row["weight_sum"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("last_round", [("<bos><user>a<end><bot>b<end><user>c<end><bot>", 0.0), ("hi d<end>", 1.0)]),
        ("all", [("<bos><user>a<end><bot>b<end><user>c<end><bot>hi d<end>", 1.0)]),
    ],
)
def test_bases(spec: str, expected: list[tuple[str, float]]) -> None:
    enc = encoder(loss_scale=spec)
    (row,), _, _ = run(enc, chat("a", "b", "c", "hi d"))
    assert shown(enc, row) == expected


def test_message_marks_override_the_base_and_the_strategies() -> None:
    row = chat("a", "Action: x", "c", "Action: y")
    row["messages"][1] |= {"loss": True, "loss_scale": 0.5}
    enc = encoder(loss_scale="last_round+react")
    (made,), _, _ = run(enc, row)
    assert shown(enc, made) == [
        ("<bos><user>a<end><bot>", 0.0), ("Action: x", 0.5), ("<end>", 1.0), ("<user>c<end><bot>", 0.0),
        ("Action: y", 2.0), ("<end>", 1.0),
    ]  # fmt: skip


def test_marks_a_piece() -> None:
    row = chat("a", "")
    row["messages"][1] = {
        "role": "assistant",
        "content": [{"type": "text", "text": "bad"}, {"type": "text", "text": " good"}],
        "loss": [False, True],
    }
    enc = encoder()
    (made,), _, _ = run(enc, row)
    assert shown(enc, made) == [("<bos><user>a<end><bot>bad", 0.0), (" good<end>", 1.0)]
    assert [turn["message"] for turn in made["turns"]] == [0, 1, 1]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # ours: whoever learns a turn learns to end it
        ("spans", [("Observation:", 2.0), (" 7", 0.0), ("<end>", 1.0), ("<user>c<end><bot>", 0.0), ("d", 1.0)]),
        # ms-swift: an end that follows an untrained token is switched on for the last turn only
        ("ms-swift", [("Observation:", 2.0), (" 7<end><user>c<end><bot>", 0.0), ("d", 1.0)]),
    ],
)
def test_ends_of_earlier_turns(rules: str, expected: list[tuple[str, float]]) -> None:
    enc = encoder(loss_scale="react", loss_rules=rules)
    (row,), _, _ = run(enc, chat("a", "Observation: 7", "c", "d"))
    assert shown(enc, row) == [("<bos><user>a<end><bot>", 0.0), *expected[:-1], ("d<end>", 1.0)]


def test_the_last_end_follows_the_base_in_ms_swift() -> None:
    row = chat("a", "b", "c", "d")
    row["messages"][3]["loss"] = False
    ours, theirs = encoder(), encoder(loss_rules="ms-swift")
    assert shown(ours, run(ours, row)[0][0])[-1] == ("<user>c<end><bot>d<end>", 0.0)
    assert shown(theirs, run(theirs, row)[0][0])[-2:] == [("<user>c<end><bot>d", 0.0), ("<end>", 1.0)]


def test_a_token_belongs_to_the_side_of_its_first_byte() -> None:
    template = TEMPLATE.replace("<bot>", "<bot>\n")
    enc = encoder(template=template)
    (row,), _, counts = run(enc, chat("a", "\nb"))
    assert shown(enc, row)[-1] == ("b<end>", 1.0) and counts["straddles"] == 1
    cut = encoder(template=template, segments="turn")
    (row,), _, counts = run(cut, chat("a", "\nb"))
    assert shown(cut, row)[-1] == ("\nb<end>", 1.0) and counts["straddles"] == 0 and counts["encode_calls"] == 2


def test_ms_swift_segments_encode_each_run_on_its_own() -> None:
    options = {"loss_scale": "react", "loss_rules": "ms-swift"}
    row = chat("q", "xAction: obObservation: ob")
    whole, cut = encoder(**options), encoder(segments="ms-swift", **options)
    (first,), _, _ = run(whole, row)
    (second,), _, counts = run(cut, row)
    assert whole.read(first["input_ids"]) == cut.read(second["input_ids"])
    # prompt | "x" | "Action: obObservation:" | " ob" | "<end>"
    assert counts["encode_calls"] == 5
    assert shown(whole, first) == shown(cut, second)


def test_doubled_bos_is_an_error() -> None:
    with pytest.raises(_native.NativeError, match="beginning-of-sequence") as raised:
        run(encoder(template="{{ bos_token }}" + TEMPLATE), chat("a", "b"))
    assert str(raised.value).startswith("x.jsonl:1: ") and raised.value.code == 65


def test_special_text_is_counted_refused_or_dropped() -> None:
    rows = [chat("a <end> b", "c"), chat("a", "b")]
    made, _, counts = run(encoder(), *rows)
    assert len(made) == 2 and counts["special_look_alikes"] == 1 == counts["rows_with_look_alikes"]
    made, ledger, _ = run(encoder(special_text="drop"), *rows)
    assert len(made) == 1 and ledger[0]["reason"] == "special_text"
    with pytest.raises(_native.NativeError, match="contains the special token <end>"):
        run(encoder(special_text="error"), *rows)


def test_bad_rows_stop_with_their_place_or_are_skipped() -> None:
    rows = [chat("a", "b"), {"messages": [{"role": "usr", "content": "x"}]}, chat("c", "d")]
    with pytest.raises(_native.NativeError, match=r"^x\.jsonl:2"):
        run(encoder(), *rows)
    made, ledger, counts = run(encoder(skip_bad_rows=True), *rows)
    assert [row["line"] for row in made] == [1, 3]
    assert [(line["line"], line["action"]) for line in ledger] == [(2, "dropped")] and counts["rows_in"] == 3


def test_text_rows_end_in_eos_and_split_in_blocks() -> None:
    row = {"messages": [{"role": "assistant", "content": "abcdefgxyz"}]}
    (made,), _, _ = run(encoder(), row)
    assert made["turns"] == [] and made["length"] == 11 and made["trained_tokens"] == 10
    blocks, ledger, _ = run(encoder(max_length=4, truncation="split"), row)
    assert [block["length"] for block in blocks] == [4, 4, 3]
    assert [token for block in blocks for token in block["input_ids"]] == made["input_ids"]
    assert len({block["row_id"] for block in blocks}) == 3 and [line["action"] for line in ledger] == ["truncated"]


def test_text_that_ends_in_eos_gets_no_second_one() -> None:
    end = 261 + SPECIALS.index("<end>")
    rows, *_ = run(encoder(), {"text": "ab<end>"}, {"text": "ab"}, {"text": "ab<end>\n"}, {"text": "<end><end>"})
    assert [row["input_ids"].count(end) for row in rows] == [1, 1, 2, 2]
    assert rows[0]["input_ids"] == rows[1]["input_ids"]
    escaped, *_ = run(encoder(special_text="escape"), {"text": "ab<end>"})
    assert escaped[0]["input_ids"].count(end) == 1 and escaped[0]["length"] > rows[0]["length"]


def test_pairs_share_an_identity_and_are_dropped_together() -> None:
    row = chat("a", "bb", rejected_response="cccccccc", margin=0.5)
    made, _, _ = run(encoder(), row)
    assert [side["side"] for side in made] == [0, 1] and made[0]["pair_id"] == made[1]["pair_id"] == made[0]["row_id"]
    assert made[0]["row_id"] != made[1]["row_id"] and made[0]["margin"] == 0.5
    made, ledger, counts = run(encoder(max_length=8), row)
    assert made == [] and len(ledger) == 1 and ledger[0]["reason"] == "too_long" and counts["rows_in"] == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet="ab hi\né🙂", max_size=8), min_size=2, max_size=6),
    st.integers(1, 40),
    st.sampled_from(["right", "left", "drop"]),
)
def test_a_cut_row_trains_whole_turns_or_none(texts: list[str], limit: int, truncation: str) -> None:
    row = chat(*texts[: len(texts) // 2 * 2])
    made, ledger, counts = run(encoder(max_length=limit, truncation=truncation), row)
    dropped = sum(line["action"] == "dropped" for line in ledger)
    cut = sum(line["action"] == "truncated" for line in ledger)
    assert counts["rows_in"] == 1 == counts.get("kept", 0) + dropped + cut
    end = run(encoder(), chat("a", "b"))[0][0]["input_ids"][-1]
    for kept in made:
        assert kept["length"] <= limit
        marked = weights(kept)
        for turn in kept["turns"]:
            trained = [marked[at] for at in range(turn["generated_start"], turn["generated_end"])]
            if any(trained):
                assert all(trained) and kept["input_ids"][turn["generated_end"] - 1] == end


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(alphabet="ab hi:\né🙂A", max_size=12), min_size=2, max_size=6),
    st.sampled_from(["default", "last_round", "all", "react+hermes", "all+react", "last_round+r.json"]),
    st.sampled_from(["spans", "ms-swift"]),
)
def test_weighing_again_equals_fresh_tokens(texts: list[str], spec: str, rules: str) -> None:
    rows = [chat(*texts[: len(texts) // 2 * 2])]
    files = [("r.json", '{"^h": [3.0], "[aA]+:?": [0.25], "i$": [-1.0]}')]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    plain, _, _ = encoder(loss_scale="all").encode_chunk(data, "x", 0, 1, 0)
    other = encoder(loss_scale=spec, loss_rules=rules, rule_files=files)
    fresh, _, _ = other.encode_chunk(data, "x", 0, 1, 0)
    again = pa.record_batch(other.reweight(plain))
    fresh = pa.record_batch(fresh)
    kept = [row for row in again.to_pylist() if row["trained_tokens"]]
    assert kept == fresh.to_pylist()
    assert again.schema == fresh.schema


def test_offsets_tile_the_text() -> None:
    text = "hi\n\n é🙂<end> ob\x00"
    ids, ends = encoder().encode(text)
    assert len(ids) == len(ends) and ends == sorted(ends) and ends[-1] == len(text.encode())
    assert encoder().read(ids) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": "lines"}, "segments"),
        ({"segments": "ms-swift"}, "ms-swift"),
        ({"truncation": "middle"}, "truncation"),
        ({"template_kwargs": "[]"}, "template_kwargs"),
        ({"max_length": 0}, "max_length"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(_native.NativeError, match=message) as raised:
        encoder(**options)
    assert raised.value.code == 2


@pytest.mark.parametrize(("dropout", "refused"), [(0.1, True), (0.0, False), (None, False)])
def test_a_tokenizer_that_cuts_words_at_random_is_refused(dropout: float | None, refused: bool) -> None:
    file = json.loads(tokenizer_json())
    file["model"]["dropout"] = dropout
    if not refused:
        _native.ChatEncoder(json.dumps(file).encode(), template=TEMPLATE)
        return
    with pytest.raises(_native.NativeError, match=r"model.dropout cuts words at random, .* set it to null"):
        _native.ChatEncoder(json.dumps(file).encode(), template=TEMPLATE)


def test_chats_in_memory_are_one_table_for_any_number_of_threads() -> None:
    enc = encoder()
    rows = [chat("hi" * (i % 97), f"ob {i} " * 20) for i in range(6000)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert len(data) > 2 * _native.CHUNK_BYTES - 2**18
    tables = [pa.table(enc.encode_chats(data, threads=threads)) for threads in (1, 2, 8)]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    assert tables[0]["line"].to_pylist() == list(range(1, 6001))
    [alone] = run(enc, rows[-1])[0]
    assert tables[0]["input_ids"][-1].as_py() == alone["input_ids"]
    with pytest.raises(_native.NativeError, match=r"^chats:6001:1: "):
        enc.encode_chats(data + b"nonsense\n", threads=2)
    assert pa.table(enc.encode_chats(b"")).num_rows == 0


def test_the_readme_of_the_rust_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Path(__file__).resolve().parents[2] / "ext" / "rust" / "py" / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_bytes(tokenizer_json())
    config = {"chat_template": TEMPLATE, "eos_token": "<end>"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat("hi", "<think>\n\n</think>\n\na b")) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "postmill_rs", _native)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert pa.table(names["table"]).num_rows == 1
    expected = [names["tokenizer"].encode(text).tolist() for text in ("one", "two", "three")]
    assert pa.array(names["made"]).to_pylist() == expected
