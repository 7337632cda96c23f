"""What rows of other tools mean: marks of training, prompts and pairs, forms of tools, roles, answers."""

import json
from typing import Any

import pytest

from postmill import _native

ASK = {"role": "user", "content": "Name a grain."}
CALL = {"type": "function", "function": {"name": "count", "arguments": {}}}


def said(text: str, **members: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **members}


def read(row: Any, **options: Any) -> Any:
    [line] = _native.normalize_lines(json.dumps(row).encode() + b"\n", "x", **options)
    return json.loads(line)


def refused(row: Any) -> str:
    with pytest.raises(_native.NativeError) as caught:
        read(row)
    return str(caught.value)


# --- marks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ({"weight": 0}, {"loss": [False]}),
        ({"weight": 1}, {"loss": [True]}),
        ({"weight": 0.5}, {"loss": [True], "loss_scale": [0.5]}),
        ({"train": False}, {"loss": [False]}),
        ({"training": True}, {"loss": [True]}),
        ({"loss_weight": 0.0}, {"loss": [False], "loss_scale": [0]}),
        ({"train": True, "loss_scale": 2}, {"loss": [True], "loss_scale": [2]}),
        ({"weight": None, "train": None}, {}),
    ],
)
def test_marks_of_every_tool_on_a_message(mark: dict[str, Any], expected: dict[str, Any]) -> None:
    row = read({"messages": [ASK, said("Granite.", **mark)]})
    assert row["messages"][1] == said("Granite.", **expected)


def test_marks_on_parts_are_marks_on_pieces() -> None:
    parts = [{"type": "text", "text": "Five. ", "train": False}, {"type": "text", "text": "No, four.", "weight": 1}]
    row = read({"messages": [ASK, said(parts)]})  # type: ignore[arg-type]
    assert row["messages"][1] == said("Five. No, four.", loss=[False, True], pieces=[6, 9])
    parts = [{"type": "text", "text": "Five. ", "loss_weight": 0}, {"type": "text", "text": "Four.", "loss_weight": 2}]
    row = read({"messages": [ASK, said(parts)]})  # type: ignore[arg-type]
    assert row["messages"][1] == said("Five. Four.", loss=[False, True], loss_scale=[0, 2], pieces=[6, 5])
    row = read({"messages": [ASK, said([{"type": "text", "text": "Five.", "train": False}])]})  # type: ignore[arg-type]
    assert row["messages"][1] == said("Five.", loss=[False])


TEXT = {"type": "text", "text": "a"}


def detail(begin: int, end: int, train: bool) -> dict[str, Any]:
    return {"begin_offset": begin, "end_offset": end, "train": train}


def test_marks_by_offsets_are_marks_on_pieces() -> None:
    """Axolotl's `train_detail`: by characters, the last one included; what no stretch covers is not trained."""
    details = [detail(0, 4, False), detail(6, 9, True)]
    row = read({"messages": [ASK, said("Sé un, cuatro.", train_detail=details)]})
    assert row["messages"][1] == said("Sé un, cuatro.", loss=[False, False, True, False], pieces=[6, 1, 4, 4])
    row = read({"messages": [ASK, said("Four.", training_detail=[detail(0, 4, True)])]})
    assert row["messages"][1] == said("Four.", loss=[True])


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (said("a", train=True, weight=1), "weight says what train says; keep one of them"),
        (said("a", train=True, loss=False), "says what"),
        (said("a", weight="high"), "expected a number, 0 for a message that is not trained on, got the text"),
        (said("a", train_detail=[{"begin_offset": 0, "end_offset": 3, "train": False}]), "ends at character 3"),
        (said("ab", train_detail=[detail(1, 1, True), detail(0, 0, True)]), "not in order, or overlap"),
        (said("ab", train_detail=[detail(0, 1, True), detail(1, 1, True)]), "not in order, or overlap"),
        (said("ab", train_detail=[{"begin_offset": 0, "train": True}]), "expected begin_offset and end_offset"),
        (said("ab", train_detail={"train": True}), "expected a list of {begin_offset, end_offset, train}"),
        (said("ab", train_detail=[detail(0, 1, True)], train=True), "train_detail says what train says"),
        (said([{"type": "text", "text": "a"}, TEXT], train_detail=[detail(0, 1, True)]), "offsets mark a content"),  # type: ignore[arg-type]
        ({**ASK, "train_detail": [detail(0, 1, True)]}, "marks train what the assistant says and nobody else"),
        (said("a", mask=True), "this mark is not read; say with loss"),
        ({**ASK, "loss": True}, "marks train what the assistant says and nobody else"),
        ({**ASK, "weight": 1}, "marks train what the assistant says and nobody else"),
        ({"role": "tool", "content": "3", "train": True}, "marks train what the assistant says and nobody else"),
        (said([{**TEXT, "train": True}, TEXT]), "some parts of the content have a mark and others none"),  # type: ignore[arg-type]
        (said([{**TEXT, "train": True}], loss=True), "the message has a mark and so have parts"),  # type: ignore[arg-type]
        (said([{"type": "thinking", "thinking": "t", "train": False}, TEXT]), "a mark on a part of type thinking"),  # type: ignore[arg-type]
    ],
)
def test_marks_that_are_not_read_are_refused(message: dict[str, Any], why: str) -> None:
    assert why in refused({"messages": [ASK, message, said("b")]})


def test_a_mark_that_leaves_a_question_out_says_what_is_so() -> None:
    row = read({"messages": [{**ASK, "weight": 0}, said("Rye.", weight=1)]})
    assert row["messages"] == [{**ASK, "loss": [False]}, said("Rye.", loss=[True])]


# --- prompts and pairs ------------------------------------------------------------------------------------------------


def test_answers_inside_a_prompt_are_not_trained() -> None:
    prompt = [ASK, said("An old answer."), {"role": "user", "content": "And now?"}]
    row = read({"prompt": prompt, "completion": [said("The new one.")]})
    assert row["messages"] == [ASK, said("An old answer.", loss=[False]), prompt[2], said("The new one.")]
    kept = [ASK, said("Keep me.", train=True), prompt[2]]
    assert read({"prompt": kept, "completion": "x"})["messages"][1] == said("Keep me.", loss=[True])


def test_the_rejected_side_has_the_whole_prompt() -> None:
    prompt = [ASK, said("", tool_calls=[CALL]), {"role": "tool", "content": "3"}]
    silent = [ASK, {**said("", tool_calls=[CALL]), "loss": [False]}, prompt[2]]
    for row in (
        {"prompt": prompt, "chosen": [said("Three.")], "rejected": [said("I cannot say.")]},
        {"prompt": prompt, "chosen": "Three.", "rejected": "I cannot say."},
        {"conversations": prompt, "chosen": said("Three."), "rejected": said("I cannot say.")},
        {"prompt": prompt, "completion": "Three.", "rejected_response": "I cannot say."},
    ):
        found = read(row)
        assert found["messages"] == [*silent, said("Three.")]
        assert found["rejected_messages"] == [*silent, said("I cannot say.")]
    found = read({"system": "S", "prompt": prompt, "chosen": "a", "rejected": "b"})
    assert [message["role"] for message in found["rejected_messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_pairs_of_whole_conversations_beside_the_chosen_one() -> None:
    """HuggingFaceH4/ultrafeedback_binarized."""
    good, bad = [ASK, said("Rye.")], [ASK, said("Granite.")]
    row = {"prompt": ASK["content"], "chosen": good, "rejected": bad, "messages": good, "score_chosen": 9.0}
    found = read(row)
    assert (found["messages"], found["rejected_messages"]) == (good, bad)
    assert json.loads(found["extra"]) == {"prompt": ASK["content"], "score_chosen": 9.0}
    found = read({**row, "messages": bad})
    assert found["messages"] == good and json.loads(found["extra"])["messages"] == bad


def test_what_both_sides_begin_with_is_the_prompt() -> None:
    start = [ASK, said("Oats?"), {"role": "user", "content": "No."}]
    found = read({"chosen": [*start, said("Rye.")], "rejected": [*start, said("Granite.")]})
    for side in ("messages", "rejected_messages"):
        assert found[side][1] == said("Oats?", loss=[False]) and "loss" not in found[side][3]


def test_kto_tags_are_labels() -> None:
    rows = [{"messages": [ASK, said("a")], "kto_tag": tag} for tag in (False, True)]
    assert [read(row)["label"] for row in rows] == [0, 1]


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["ai", "model", "chatgpt", "bard", "bing", "GPT"])
def test_other_names_of_the_assistant(role: str) -> None:
    assert read({"conversations": [{"from": "human", "value": "q"}, {"from": role, "value": "a"}]})["messages"][
        1
    ] == said("a")


def test_ipython_answers_as_a_tool_and_unknown_roles_name_a_way_on() -> None:
    row = {"messages": [ASK, said("", tool_calls=[CALL]), {"role": "ipython", "content": "3"}]}
    assert read(row)["messages"][2]["role"] == "tool"
    assert "--on-bad-row skip leaves such rows out" in refused({"messages": [{"role": "narrator", "content": "x"}]})


def test_tools_come_in_one_form() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": function}
    anthropic = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    for tool in (function, wrapped, {"type": "function", **function}, anthropic, {"type": "custom", **anthropic}):
        for given in ([tool], json.dumps([tool])):
            assert read({"messages": [ASK, said("a")], "tools": given})["tools"] == [wrapped]
    other = {"type": "code_interpreter"}
    assert read({"messages": [ASK, said("a")], "tools": [other]})["tools"] == [other]


def test_reasoning_may_be_a_list_of_parts() -> None:
    for name in ("reasoning_content", "reasoning", "thinking"):
        row = {
            "messages": [
                ASK,
                said("Four.", **{name: [{"type": "text", "text": "Co"}, {"type": "text", "text": "unt."}]}),
            ]
        }
        assert read(row)["messages"][1][name] == "Count."


def test_answers_may_be_numbers() -> None:
    assert read({"question": "6*12?", "answer": 72})["messages"][1] == said("72")
    assert read({"question": "6*12?", "answer": 0.10})["messages"][1] == said("0.1")
    assert "got true" in refused({"question": "q", "answer": True})


def test_a_question_without_an_answer_column_is_named() -> None:
    message = refused({"problem": "q", "deepseek_solution": "a"})
    assert "no column holds an answer (columns: deepseek_solution); name it with --columns OLD=response" in message
    assert "or make prompts with --for prompt" in message
    assert read({"problem": "q", "answer": None})["messages"] == [{"role": "user", "content": "q"}]
