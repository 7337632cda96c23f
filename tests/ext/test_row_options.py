"""What people of other tools can ask of rows: whose words are trained, how they are named, rows that come tokenized."""

import json
from typing import Any

import pyarrow as pa
import pytest
from tiny_encoder import chat, encoder, run, shown

from postmill import _native

LONG = chat("q1", "a1", "q2", "a2")


def trained(row: dict[str, Any], **options: Any) -> list[str]:
    enc = encoder(**options)
    [made] = run(enc, row)[0]
    return [text for text, weight in shown(enc, made) if weight == 1.0]


@pytest.mark.parametrize(
    ("closing", "expected"),
    [
        ("turn", ["a1<end>", "a2<end>"]),
        ("last", ["a1", "a2<end>"]),
        ("none", ["a1", "a2"]),
        ("all", ["<end>", "a1<end>", "<end>", "a2<end>"]),
    ],
)
def test_which_closing_tokens_are_trained(closing: str, expected: list[str]) -> None:
    assert trained(LONG, train_closing=closing) == expected
    enc = encoder(train_closing=closing)
    rows, _, _ = encoder().encode_chunk(json.dumps(LONG).encode(), "x", 0, 1, 0)
    again = pa.record_batch(enc.reweight(rows)).to_pylist()[0]
    assert [text for text, weight in shown(enc, again) if weight == 1.0] == expected


def test_closing_tokens_of_turns_that_are_not_trained() -> None:
    row = chat("q1", "a1", "q2", "a2")
    row["messages"][1]["loss"] = False
    assert trained(row, train_closing="turn") == ["a2<end>"]
    assert trained(row, train_closing="all") == ["<end>", "<end>", "<end>", "a2<end>"]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (["user"], ["q1<end>", "q2<end>"]),
        (["user", "assistant"], ["q1<end>", "a1<end>", "q2<end>", "a2<end>"]),
        (["system", "assistant"], ["s<end>", "a1<end>", "a2<end>"]),
    ],
)
def test_whose_turns_are_trained(roles: list[str], expected: list[str]) -> None:
    assert trained(LONG | {"system": "s"}, train_roles=roles) == expected


def test_marks_still_count_where_questions_are_trained() -> None:
    row = chat("q1", "a1", "q2", "a2")
    row["messages"][0]["loss"] = False
    assert trained(row, train_roles=["user"]) == ["q2<end>"]
    with pytest.raises(_native.NativeError, match="cannot find its words"):
        template = (
            "{% for m in messages %}{{ m.content | upper }}<end>{% endfor %}{% if add_generation_prompt %}{% endif %}"
        )
        run(encoder(template=template, train_roles=["user"]), LONG)


def test_roles_and_members_by_other_names() -> None:
    row = {"messages": [{"author": "npc", "line": "q"}, {"author": "hero", "line": "a"}]}
    names = {"columns": [("author", "role"), ("line", "content")], "roles": [("npc", "user"), ("hero", "assistant")]}
    assert trained(row, **names) == ["a<end>"]
    with pytest.raises(_native.NativeError, match="--roles NAME=ROLE"):
        run(encoder(columns=names["columns"]), row)


def test_system_messages_are_dropped_and_set() -> None:
    row = {"messages": [{"role": "system", "content": "old"}, *chat("q", "a")["messages"]]}
    enc = encoder(drop=["system"])
    assert enc.read(run(enc, row, row | {"system": "older"})[0][1]["input_ids"]) == "<bos><user>q<end><bot>a<end>"
    enc = encoder(drop=["system"], system="new")
    assert enc.read(run(enc, row)[0][0]["input_ids"]).startswith("<bos><user>new<end><user>q<end>")


def test_answers_in_a_prompt_are_trained_under_all() -> None:
    row = {"prompt": LONG["messages"][:3], "completion": LONG["messages"][3:]}
    assert trained(row) == ["a2<end>"]
    whole = "<bos><user>q1<end><bot>a1<end><user>q2<end><bot>a2<end>"
    assert trained(row, loss_scale="all") == [whole]
    rows, _, _ = encoder().encode_chunk(json.dumps(row).encode(), "x", 0, 1, 0)
    enc = encoder(loss_scale="all")
    assert shown(enc, pa.record_batch(enc.reweight(rows)).to_pylist()[0]) == [(whole, 1.0)]


def test_a_mark_on_a_question_is_seen_when_tokens_are_weighed_again_with_all() -> None:
    row = chat("q", "a")
    row["messages"][0]["loss"] = False
    rows, _, _ = encoder().encode_chunk(json.dumps(row).encode(), "x", 0, 1, 0)
    with pytest.raises(_native.NativeError, match=r"messages\[0\].*--loss-scale all says that it is"):
        encoder(loss_scale="all").reweight(rows)


def test_a_row_for_each_turn() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{{ m.content if loop.last else '' }}<end>"
        "{% else %}<user>{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    enc = encoder(each_turn=True, template=template, unwritten="allow")
    made, ledger, counts = run(enc, LONG)
    assert [shown(enc, row) for row in made] == [
        [("<user>q1<end><bot>", 0.0), ("a1<end>", 1.0)],
        [("<user>q1<end><bot><end><user>q2<end><bot>", 0.0), ("a2<end>", 1.0)],
    ]
    assert counts["kept"] == 1 and counts["rows"] == 2 and not ledger
    assert len({row["row_id"] for row in made}) == 2
    enc = encoder(each_turn=True, max_length=12)
    made, ledger, counts = run(enc, LONG)
    assert len(made) == 1 and [line["action"] for line in ledger] == ["truncated"] and counts["kept"] == 0


def test_the_answer_at_the_end_of_a_prompt_is_gone_on_with() -> None:
    enc = encoder(purpose="prompt", continue_final=True)
    assert enc.read(run(enc, LONG)[0][0]["input_ids"]).endswith("<user>q2<end><bot>a2")
    enc = encoder(purpose="prompt")
    assert enc.read(run(enc, LONG)[0][0]["input_ids"]).endswith("<user>q2<end><bot>")


def test_without_a_template() -> None:
    row = {"prompt": "What? ", "completion": "This."}
    enc = encoder(template=None, plain=True, special_texts=[("eos_token", "<end>")])
    [made] = run(enc, row)[0]
    assert shown(enc, made) == [("What? ", 0.0), ("This.<end>", 1.0)]
    enc = encoder(template=None, plain=True, purpose="prompt")
    assert enc.read(run(enc, {"prompt": "What? "})[0][0]["input_ids"]) == "What? "


IDS = [10, 11, 12, 13, 14]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"labels": [-100, -100, 12, 13, -100]}, [0, 0, 1, 1, 0]),
        ({"completion_mask": [0, 1, 0, 1, 1]}, [0, 1, 0, 1, 1]),
        ({"assistant_masks": [0, 0, 1, 1, 1], "attention_mask": [1, 1, 1, 1, 0]}, [0, 0, 1, 1]),
        ({"labels": IDS, "loss_mask": [False, True, True, True, False]}, [0, 1, 1, 1, 0]),
    ],
)
def test_rows_that_come_tokenized(columns: dict[str, Any], expected: list[int]) -> None:
    enc = encoder(template=None)
    [made] = run(enc, {"input_ids": IDS, "channel": "c"} | columns)[0]
    weights = [0] * made["length"]
    for span in made["spans"]:
        weights[span["start"] : span["end"]] = [1] * (span["end"] - span["start"])
    assert made["input_ids"] == IDS[: len(expected)] and weights == expected and made["channel"] == "c"
    rows, _, _ = enc.encode_chunk(json.dumps({"input_ids": IDS} | columns).encode(), "x", 0, 1, 0)
    again = encoder(template=None, loss_scale="last_round").reweight(rows)
    assert pa.record_batch(again).to_pylist()[0]["spans"] == made["spans"]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"labels": [10, 11]}, "has 2 entries and input_ids 5"),
        ({"labels": [11, 12, 13, 14, -100]}, r"\$.labels\[0\]: is 11, expected the id \(10\) or -100"),
        ({"attention_mask": [1, 0, 1, 1, 1]}, "has a 0 between ones"),
        ({"input_ids": [10, 99999]}, "input_ids has 99999"),
        ({"input_ids": [10, "x"]}, r"input_ids\[1\]: expected an integer"),
    ],
)
def test_tokenized_rows_that_cannot_be_right(columns: dict[str, Any], why: str) -> None:
    with pytest.raises(_native.NativeError, match=why):
        run(encoder(template=None), {"input_ids": IDS} | columns)


def test_forms_of_other_services() -> None:
    openai = {
        "input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "good"}],
        "non_preferred_output": [{"role": "assistant", "content": "bad"}],
    }
    enc = encoder()
    made, _, _ = run(enc, openai)
    assert [enc.read(row["input_ids"])[-10:-5] for row in made] == [">good", "t>bad"]
    for row, why in [
        ({"contents": [{"role": "user", "parts": [{"text": "q"}]}]}, "Gemini"),
        ({"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"}, "begin with the prompt"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "refusal": "No."}]},
         "refused to answer"),
    ]:  # fmt: skip
        with pytest.raises(_native.NativeError, match=why):
            run(enc, row)


def test_answers_that_are_lists_of_calls_are_calls() -> None:
    row = {
        "query": "q",
        "answers": '[{"name": "weigh", "arguments": {"sack": 3}}]',
        "tools": '[{"name": "weigh", "description": "", "parameters": {}}]',
    }
    found = json.loads(_native.normalize_lines(json.dumps(row).encode(), "x")[0])
    assert found["messages"][1]["tool_calls"][0]["function"] == {"name": "weigh", "arguments": {"sack": 3}}


def test_ids_of_calls_are_numbered_anew() -> None:
    call = {"id": "call_AbC-123456789", "type": "function", "function": {"name": "weigh", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_AbC-123456789", "content": "3"},
        {"role": "assistant", "content": "3"},
    ]
    template = (
        "{% for m in messages %}<user>{{ m.content }}{{ m.tool_call_id }}{% for c in m.tool_calls or [] %}{{ c.id }}"
        "{{ c.function.name }}{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    enc = encoder(template=template, number_calls=True)
    assert enc.read(run(enc, {"messages": messages})[0][0]["input_ids"]).count("000000001") == 2


def test_pairs_become_labelled_rows() -> None:
    row = {"query": "q", "response": "good", "rejected_response": "bad", "channel": "c", "margin": 2.0}
    made, ledger, counts = run(enc := encoder(unpair=True), row)
    assert [(enc.read(one["input_ids"]), one["label"]) for one in made] == [
        ("<bos><user>q<end><bot>good<end>", 1.0),
        ("<bos><user>q<end><bot>bad<end>", 0.0),
    ]
    assert [one["pair_id"] for one in made] == [None, None]
    assert [one["channel"] for one in made] == ["c", "c"]
    assert made[0]["row_id"] != made[1]["row_id"]
    assert (counts["rows_in"], counts["kept"], counts["rows"], ledger) == (1, 1, 2, [])


def test_a_pair_that_is_left_out_is_left_out_whole() -> None:
    row = {"query": "q", "response": "good", "rejected_response": "bad " * 20}
    made, ledger, counts = run(encoder(unpair=True, max_length=30), row)
    assert made == [] and counts["rows_in"] == 1
    assert [line["reason"] for line in ledger] == ["too_long"]


def test_pairs_of_texts_have_their_prompt_in_common() -> None:
    texts = {"chosen": "Human: q Assistant: yes", "rejected": "Human: q Assistant: no"}
    enc = encoder(plain=True, special_texts=[("bos_token", "<bos>"), ("eos_token", "<end>")])
    made, _, _ = run(enc, texts)
    assert [shown(enc, row) for row in made] == [
        [("Human: q Assistant:", 0.0), (" yes<end>", 1.0)],
        [("Human: q Assistant:", 0.0), (" no<end>", 1.0)],
    ]
    trl = pytest.importorskip("trl")
    expected = trl.data_utils.extract_prompt(texts)
    assert [expected[name] for name in ("prompt", "chosen", "rejected")] == ["Human: q Assistant:", " yes", " no"]


def test_segments_are_texts_with_a_mark_each() -> None:
    segments = [{"text": "<user>hi", "label": False}, {"text": " ab", "label": True}, {"text": "<end>", "label": 1}]
    enc = encoder(template=None)
    made, _, _ = run(enc, {"segments": segments})
    assert shown(enc, made[0]) == [("<user>hi", 0.0), (" ab<end>", 1.0)]
    assert made[0]["trained_tokens"] == 3
    for bad, why in [
        ([{"text": "x"}], "expected a text and a label"),
        ("x", "expected a list of {text, label}"),
        ([{"text": "", "label": True}], "the segments have no text"),
    ]:
        with pytest.raises(_native.NativeError, match=why):
            run(enc, {"segments": bad})
