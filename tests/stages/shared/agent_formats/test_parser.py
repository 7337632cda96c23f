"""How a stream is cut changes nothing, calls are those that the format wrote, and no character is lost."""

import itertools
import json
import random

import pytest

from postmill.stages.shared.agent_formats.parser import Parser, guess_format, opening
from postmill.stages.shared.agent_formats.table import FORMATS

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"properties": {"x": {"type": "integer"}}}}}]
CALL = {"name": "find", "arguments": {"x": 5}}
TEXTS = {
    "hermes": '<tool_call>\n{"name": "find", "arguments": {"x": 5}}\n</tool_call>',
    "qwen3_coder": "<tool_call>\n<function=find>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>",
    "glm4_5": "<tool_call>find\n<arg_key>x</arg_key>\n<arg_value>5</arg_value>\n</tool_call>",
    "deepseek_v3_1": '<｜tool▁call▁begin｜>find<｜tool▁sep｜>{"x": 5}<｜tool▁call▁end｜>',
    "llama3": '{"name": "find", "parameters": {"x": 5}}',
    "react_en": 'Action: find\nAction Input: {"x": 5}\n',
}


def parse(text, cuts, *, name="", reasons=False, is_reasoning=False):
    parser = Parser(agent_format=name, tools=TOOLS, reasons=reasons, is_reasoning=is_reasoning)
    edges = [0, *sorted(cuts), len(text)]
    parts = [part for a, b in itertools.pairwise(edges) for part in parser.push(text[a:b])] + parser.finish()
    content = "".join(part.content for part in parts)
    return content, "".join(part.reasoning for part in parts), [part.call for part in parts if part.call]


def every_cut(text, **options):
    """Whole, letter by letter, in two at every place, and at random."""
    make = random.Random(0)
    found = parse(text, [], **options)
    ways = [list(range(1, len(text))), *([at] for at in range(1, len(text)))]
    ways += [make.sample(range(1, len(text)), min(3, len(text) - 1)) for _ in range(20)]
    for cuts in ways:
        assert parse(text, cuts, **options) == found, cuts
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_calls_are_read_however_the_stream_is_cut(name):
    text = "I look.\n" + TEXTS[name]
    content, _, calls = every_cut(text, name=name)
    assert content.strip() == "I look."
    assert calls == [CALL]


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "deepseek_v3_1"])
def test_two_calls_and_what_is_said_after_them(name):
    content, _, calls = every_cut(f"a {TEXTS[name]}\n{TEXTS[name]} b", name=name)
    assert calls == [CALL, CALL]
    assert content.split() == ["a", "b"]


def test_reasoning_is_apart():
    assert every_cut("<think>hm</think>\n\nyes", reasons=True) == ("\n\nyes", "hm", [])
    assert every_cut("hm</think>yes", reasons=True, is_reasoning=True) == ("yes", "hm", [])
    assert every_cut("hm, cut", reasons=True, is_reasoning=True) == ("", "hm, cut", [])
    assert every_cut("no <think>of it</think>", reasons=True) == ("no <think>of it</think>", "", [])
    assert every_cut("<thin", reasons=True) == ("<thin", "", [])
    text = f"<think>a <tool_call> b</think>{TEXTS['hermes']}"
    assert every_cut(text, reasons=True, name="hermes") == ("", "a <tool_call> b", [CALL])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{broken\n</tool_call>",
        '<tool_call>\n{"name": "find", "arguments": {"x": 5}}',
        f"{TEXTS['hermes']}<tool_call>nothing</tool_call>",
        "<tool_cal",
        "<tool_call></tool_call>",
        "a < b <tool",
    ],
)
def test_what_is_no_call_is_said_as_it_stands(text):
    assert every_cut(text, name="hermes") == (text, "", [])


def test_no_text_loses_a_character_in_any_format():
    make = random.Random(1)
    for name in FORMATS:
        start = opening(name)
        pieces = [
            start or "x",
            start[:-1],
            '{"name": "f"',
            "}",
            "]",
            "\n",
            "x",
            "</tool_call>",
            "<think>",
            "é",
            '"',
            "parameters",
        ]
        for _ in range(60):
            text = "".join(make.choices(pieces, k=make.randrange(1, 9)))
            content, reasoning, calls = parse(text, range(1, len(text)), name=name)
            assert parse(text, [], name=name) == (content, reasoning, calls)
            if not calls:
                assert content == text
            else:
                assert all(json.dumps(call) for call in calls)


def test_a_template_tells_its_format():
    assert guess_format("... <tool_call>\n{{ x }}") == "hermes"
    assert guess_format("<tool_call>\n<function={{ f }}>") == "qwen3_coder"
    assert guess_format("{{ messages }}") == ""
