"""Agent formats on the way to tokens: what is trained, what is refused, where turns lie."""

import json
from typing import Any

import pytest
from tiny_encoder import encoder, run, shown

from postmill import _native
from postmill.stages.shared.agent_formats.table import format_json

CHATML = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{{ m.content }}<end>"
    "{% else %}<user>{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weigh", "description": "Weighs.", "parameters": {}}}


def call(**arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "weigh", "arguments": arguments}}


def row(last: str = "25 kg.", **marks: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "How much?"},
        {"role": "assistant", "content": "Thought: look\n", "tool_calls": [call(sack=3)]} | marks,
        {"role": "tool", "tool_call_id": "c1", "content": "25 kg"},
        {"role": "assistant", "content": last},
    ]
    return {"messages": messages}


def encode(name: str, *rows: dict[str, Any], **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    enc = encoder(template=CHATML, agent_format=(name, format_json(name)), **options)
    return enc, run(enc, *rows)[0]


CALL = "Thought: look\nAction: weigh\nAction Input: {'sack': 3}\nObservation:"


def test_what_a_tool_answered_inside_a_turn_is_not_trained() -> None:
    enc, [made] = encode("react_en", row())
    assert shown(enc, made) == [
        ("<user>How much?<end><bot>", 0.0), (CALL, 1.0), ("25 kg\n", 0.0), ("25 kg.<end>", 1.0),
    ]  # fmt: skip
    assert [(turn["role"], turn["message"]) for turn in made["turns"]] == [(1, 0), (2, 1), (3, 2), (2, 3)]


def test_last_round_starts_behind_the_last_answer_of_a_tool() -> None:
    enc, [made] = encode("react_en", row(), loss_scale="last_round")
    assert shown(enc, made)[-1] == ("25 kg.<end>", 1.0) and len(shown(enc, made)) == 2


@pytest.mark.parametrize("segments", ["whole", "turn"])
def test_strategies_of_the_same_name_weigh_it(segments: str) -> None:
    enc, [made] = encode("react_en", row(), loss_scale="default+react", segments=segments)
    assert ("Action: weigh\nAction Input: {'sack': 3}\nObservation:", 2.0) in shown(enc, made)
    enc, [made] = encode("hermes", row(), loss_scale="default+hermes", segments=segments)
    tagged = '<tool_call>\n{"name": "weigh", "arguments": {"sack": 3}}\n</tool_call>'
    assert (tagged, 2.0) in shown(enc, made)


def test_marks_of_the_messages_of_one_turn_stay_theirs() -> None:
    enc, [made] = encode("react_en", row(loss=False))
    assert shown(enc, made)[-1] == ("25 kg.<end>", 1.0) and len(shown(enc, made)) == 2
    enc, [made] = encode("react_en", row(loss_scale=0.5))
    assert (CALL, 0.5) in shown(enc, made)


def test_weighed_again_is_weighed_fresh() -> None:
    enc, _ = encode("react_en", row())
    data = json.dumps(row()).encode()
    rows, _, _ = enc.encode_chunk(data, "x", 0, 1, 0)
    other, [fresh] = encode("react_en", row(), loss_scale="last_round+react")
    assert fresh["spans"] == run_rows(other.reweight(rows))[0]["spans"]


def run_rows(batch: Any) -> list[dict[str, Any]]:
    import pyarrow as pa

    return pa.record_batch(batch).to_pylist()


def test_an_answer_that_ends_the_row_is_not_trained_and_a_prompt_goes_on_behind_it() -> None:
    open_row = {"messages": row()["messages"][:3]}
    enc, [made] = encode("react_en", open_row)
    assert shown(enc, made)[1:] == [(CALL, 1.0), ("25 kg\n<end>", 0.0)]
    enc = encoder(template=CHATML, agent_format=("react_en", format_json("react_en")), purpose="prompt")
    prompt = run(enc, open_row)[0][0]
    assert enc.read(prompt["input_ids"]).endswith("Observation:25 kg\n")


def test_tools_are_in_the_system_message_and_answers_are_the_users() -> None:
    enc, [made] = encode("hermes", row() | {"tools": [TOOL], "system": "You mind the mill."})
    text = enc.read(made["input_ids"])
    assert text.startswith("<user>You mind the mill.\n\n# Tools\n") and json.dumps(TOOL) in text
    assert "<user><tool_response>\n25 kg\n</tool_response><end><bot>25 kg.<end>" in text
    assert [(turn["role"], turn["message"]) for turn in made["turns"]] == [(0, 0), (1, 1), (2, 2), (1, 3), (2, 4)]


def test_a_format_keeps_its_special_tokens_where_the_rows_own_are_escaped() -> None:
    enc, [made] = encode("react_en", row(last="<end>"), special_text="escape")
    assert made["input_ids"].count(enc.encode("<end>")[0][0]) == 2


def test_without_a_format_the_refusal_names_the_option() -> None:
    with pytest.raises(_native.NativeError, match="write it into the text with --agent-format"):
        run(encoder(template=CHATML), row())


@pytest.mark.parametrize(
    ("name", "messages", "why"),
    [
        ("react_en", [{"role": "user", "content": "?"}, {"role": "tool", "content": "5"}], "none stands before"),
        ("llama3", [{"role": "assistant", "content": "Hi."}, {"role": "assistant", "content": "."}], "first question"),
        ("react_en", [*row()["messages"][:3], {"role": "assistant", "content": "x", "reasoning_content": "y"}],
         "reasoning has no place"),
    ],
)  # fmt: skip
def test_rows_without_a_place_are_refused(name: str, messages: list[dict[str, Any]], why: str) -> None:
    with pytest.raises(_native.NativeError, match=why):
        encode(name, {"messages": messages, "tools": [TOOL]})
