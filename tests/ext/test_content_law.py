"""What a row brings is in its rendering, or the row is refused; and what a model does not write is not trained.

Every template here is a kind that people have met; each test names the report it comes from.
"""

from typing import Any

import pytest
from tiny_encoder import chat, encoder, run, shown

from postmill import _native

CHATML = (
    "{% for m in messages %}{{ '<user>' if m.role != 'assistant' else '<bot>' }}{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
CALLS = (
    "{% if tools %}<user>{% for t in tools %}{{ t | tojson }}{% endfor %}<end>{% endif %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<end>"
    "{% else %}<user>{{ m.content }}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object", "properties": {}}}}


def call(name: str = "weigh", **arguments: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_row(**columns: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "How much?"},
        {"role": "assistant", "content": None, "tool_calls": [call(sack=3)]},
        {"role": "tool", "tool_call_id": "c1", "content": "25 kg"},
        {"role": "assistant", "content": "25 kg."},
    ]
    return {"messages": messages} | columns


def refusal(template: str, row: dict[str, Any], **options: Any) -> str:
    with pytest.raises(_native.NativeError) as caught:
        run(encoder(template=template, **options), row)
    assert caught.value.code == 65
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "row", "place"),
    [
        (CHATML, tool_row(), "$.messages[1].tool_calls[0]: "),
        (CHATML, chat("a", "b", tools=[TOOL]), "$.tools[0]: "),
        (CALLS.replace("c.function.arguments | tojson", "1"), tool_row(), "$.messages[1].tool_calls[0]: "),
        (CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"), "two calls", "$.messages[1].tool_calls[1]: "),
        (CALLS.replace("<user>{{ m.content }}", "{{ '<user>' + m.content if m.role == 'user' else '' }}"), tool_row(),
         "$.messages[2].content: "),
        (CHATML.replace("m.content", "(m.content if not loop.first else 'You are.')"), chat("a", "b"),
         "$.messages[0].content: "),
        (CHATML.replace("{{ m.content }}", "{% set x %}{{ m.content }}{% endset %}{{ x if loop.index > 1 else '' }}"),
         chat("user", "b"), "$.messages[0].content: "),
        (CALLS.replace("in m.tool_calls or []", "in m.tool_calls if m.content"), tool_row(),
         "$.messages[1].tool_calls[0]: "),
    ],
)  # fmt: skip
def test_what_the_template_drops_is_refused(template: str, row: Any, place: str) -> None:
    """F1, deepseek#45422 and kin: a dropped call trained an empty answer, exit 0."""
    if row == "two calls":
        row = tool_row()
        row["messages"][1]["tool_calls"].append(call("count", sacks=[1, 2]))
    message = refusal(template, row)
    assert place in message and "--chat-template" in message and message.startswith("x.jsonl:1")


@pytest.mark.parametrize(
    "template",
    [
        CALLS,
        "{% macro turn(m) %}{{ m.content | trim | upper }}{{ m.tool_calls }}{% endmacro %}{{ tools }}"
        + CHATML.replace("m.content", "turn(m)"),
        "{{ tools | tojson }}{% macro all() %}"
        + CALLS.replace("{% if tools %}", "{% if false %}")
        + "{% endmacro %}{{ all() }}",
        "{{ tools | map(attribute='function.name') | join }}{% for m in messages %}"
        "{{ '<bot>' if m.role == 'assistant' else '<user>' }}{{ m | tojson }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}",
    ],
)  # fmt: skip
def test_what_is_written_in_any_way_is_no_fault(template: str) -> None:
    (row,), _, counts = run(encoder(template=template), tool_row(tools=[TOOL]))
    assert row["trained_tokens"] > 0 and counts["unwritten_parts"] == 0


def test_words_that_stand_elsewhere_are_not_taken_for_the_message() -> None:
    """The tool's result is repeated by the answer, and the user's word stands in every header."""
    assert "$.messages[2].content" in refusal(
        CALLS.replace("else %}<user>", "elif m.role == 'user' %}<user>"), tool_row()
    )
    hidden = "{% for m in messages %}<{{ m.role }}>{% if m.role != 'user' %}{{ m.content }}{% endif %}<end>{% endfor %}"
    assert "$.messages[0].content" in refusal(hidden, chat("user", "b"))


def test_thinking_that_a_template_leaves_out_is_counted_and_parts_can_be_allowed() -> None:
    row = chat("a", "b", "c", "d")
    row["messages"][1]["reasoning_content"] = "hm"
    _, _, counts = run(encoder(), row)
    assert counts["unwritten_thinking"] == 1 and counts["unwritten_parts"] == 0
    _, _, counts = run(encoder(unwritten="allow"), tool_row(tools=[TOOL]))
    assert counts["unwritten_parts"] == 2
    with pytest.raises(_native.NativeError, match="error, allow"):
        encoder(unwritten="x")


def test_a_bad_row_is_dropped_with_its_reason() -> None:
    made, ledger, _ = run(encoder(skip_bad_rows=True), tool_row(), chat("a", "b"))
    assert len(made) == 1 and [line["reason"] for line in ledger] == ["unwritten"]


def test_a_system_message_that_the_template_drops_is_named() -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")
    assert "--system: " in refusal(template, chat("a", "b"), system="be brief")


def test_templates_that_read_parts_keep_every_word() -> None:
    """F2: content that is text became nothing in templates that go through parts."""
    template = CHATML.replace(
        "{{ m.content }}", "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    )
    enc = encoder(template=template)
    parts = {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
    ]}  # fmt: skip
    (row,), _, counts = run(enc, parts)
    assert shown(enc, row) == [("<user>ab<end><bot>", 0.0), ("c<end>", 1.0)] and counts["unwritten_parts"] == 0


def test_templates_that_join_arguments_to_text_get_text() -> None:
    """F5: DeepSeek V3 as TRL ships it."""
    template = CALLS.replace(
        "{{ c.function.name }}({{ c.function.arguments | tojson }})",
        "{{ 'CALL ' + c.function.name + ' ' + c.function.arguments }}",
    )
    for arguments in ('{"river": "Aare"}', {"river": "Aare"}):
        row = tool_row()
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = arguments
        enc = encoder(template=template)
        (made,), _, _ = run(enc, row)
        assert ('CALL weigh {"river": "Aare"}<end>', 1.0) in shown(enc, made)


def test_a_call_looked_up_in_a_tools_message_is_the_tools() -> None:
    """Command A: what an inner loop over earlier answers prints was trained. Two calls: `turns overlap`."""
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}<user>tool"
        "{% for other in messages if other.role == 'assistant' and other.tool_calls %}"
        "{% for call in other.tool_calls if call.id == m.tool_call_id %} answers "
        "{{ call.function.name }}{% endfor %}"
        "{% for more in messages if more.role == 'user' %}!{% endfor %}{% endfor %}: {{ m.content }}<end>"
        "{% elif m.tool_calls %}<bot>{% for c in m.tool_calls %}"
        "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<end>{% else %}"
        "{{ '<bot>' if m.role == 'assistant' else '<user>' }}{{ m.content }}<end>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    enc = encoder(template=template)
    row = tool_row()
    row["messages"][1]["tool_calls"].append(call("count") | {"id": "c2"})
    row["messages"].insert(3, {"role": "tool", "tool_call_id": "c2", "content": "7"})
    (made,), _, _ = run(enc, row)
    assert shown(enc, made) == [
        ("<user>How much?<end><bot>", 0.0),
        ('weigh({"sack": 3})count({})<end>', 1.0),
        ("<user>tool answers weigh!: 25 kg<end><user>tool answers count!: 7<end><bot>", 0.0),
        ("25 kg.<end>", 1.0),
    ]


def test_an_end_of_sequence_behind_the_loop_is_trained() -> None:
    """axolotl#2710, trl#931: models that never stop."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% else %}{{ eos_token }}{% endif %}"
    )
    enc = encoder(template=template, special_texts=[("eos_token", "<end>")])
    (made,), _, counts = run(enc, chat("a", "b", "c", "d"))
    assert shown(enc, made)[-1] == ("d<end>", 1.0) and len(counts["closing_ids"]) == 1


def test_a_header_that_ends_every_rendering_is_no_words_of_the_model() -> None:
    """F4: Llama 3 as first released prints its generation prompt without being asked."""
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}<assistant>"
    enc = encoder(template=template)
    (made,), _, _ = run(enc, chat("a", "b"))
    assert shown(enc, made) == [("<user>a<end><assistant>", 0.0), ("b<end>", 1.0), ("<assistant>", 0.0)]


def test_a_chat_may_start_with_the_assistant() -> None:
    """Gemma 4, SmolLM3: a prompt that looks at the message before has none to look at."""
    template = (
        "{% for m in messages %}{{ '<bot>' if m.role == 'assistant' else '<user>' }}{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}{% if messages[-1].role == 'tool' %}<user>{% endif %}<bot>{% endif %}"
    )
    enc = encoder(template=template)
    row = {"messages": [{"role": "assistant", "content": "hi"}, *chat("a", "b")["messages"]]}
    (made,), _, _ = run(enc, row)
    assert [text for text, weight in shown(enc, made) if weight] == ["hi<end>", "b<end>"]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({"loss": [True, False]}, [("good", 1.0), (" slip", 0.0), ("<end>", 1.0)]),
        ({"loss": [False, True]}, [("good", 0.0), (" slip<end>", 1.0)]),
        ({"loss": [False, False]}, [("good slip<end>", 0.0)]),
        ({"loss_scale": [2.0, 0.0]}, [("good", 2.0), (" slip", 0.0), ("<end>", 1.0)]),
    ],
)
def test_who_learns_any_of_a_turn_learns_its_end(marks: dict[str, Any], expected: list[tuple[str, float]]) -> None:
    """F12."""
    enc = encoder()
    row = chat("a", "b", "c", "d")
    row["messages"][1] = {"role": "assistant", "content": ["good", " slip"]} | marks
    (made,), _, _ = run(enc, row)
    text = "".join(piece for piece, _ in shown(enc, made))
    assert text == "<bos><user>a<end><bot>good slip<end><user>c<end><bot>d<end>"
    weighed = shown(enc, made)[:-2]
    assert "".join(f"{piece}:{weight};" for piece, weight in expected if weight) == "".join(
        f"{piece}:{weight};" for piece, weight in weighed if weight
    )


def test_a_template_that_reads_the_first_part_alone_loses_no_other() -> None:
    """LLaVA-NeXT as TRL ships it."""
    template = (
        "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<bot>' }}{{ m.content[0].text }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    row = chat("a", "b")
    assert run(encoder(template=template), row)[2]["kept"] == 1
    row["messages"][1]["content"] = [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]
    assert "$.messages[1].content: " in refusal(template, row)
    assert run(
        encoder(template=template.replace("m.content[0].text", "m.content | map(attribute='text') | join")), row
    )[2]["kept"]


def test_thinking_that_is_joined_to_the_answer_and_cut_off_is_counted() -> None:
    """Nemotron 3 as TRL ships it."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}<end>{% else %}{% set text = m.content %}"
        "{% if m.reasoning_content %}{% set text = '<think>' ~ m.reasoning_content ~ '</think>' ~ text %}{% endif %}"
        "<bot>{{ text.split('</think>')[-1] if not loop.last else text }}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<bot>{% endif %}"
    )
    row = chat("a", "b", "c", "d")
    row["messages"][1]["reasoning_content"] = "of the past"
    row["messages"][3]["reasoning_content"] = "of now"
    enc = encoder(template=template)
    [made], _, counts = run(enc, row)
    assert counts["unwritten_thinking"] == 1
    text = enc.read(made["input_ids"])
    assert "of now" in text and "of the past" not in text


def test_a_prompt_with_another_indentation_is_still_the_header() -> None:
    """Templates that were indented without care, as in many collections of them."""
    template = (
        "{% for m in messages %}{{ '  ' }}{{ '<bot>\\n' if m.role == 'assistant' else '<user>' }}{{ m.content }}<end>"
        "{% if loop.last and m.role == 'user' and add_generation_prompt %}{{ '    <bot>\\n' }}{% endif %}{% endfor %}"
    )
    enc = encoder(template=template)
    [made], _, _ = run(enc, chat("a", "b", "c", "d"))
    assert [text for text, weight in shown(enc, made) if weight] == ["b<end>", "d<end>"]
