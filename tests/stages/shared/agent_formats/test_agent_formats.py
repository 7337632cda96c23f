"""Every agent format writes what ms-swift writes, and reads what it wrote."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from agent_rows import CASES

from postmill import _native
from postmill.stages.shared.agent_formats.read import read_calls
from postmill.stages.shared.agent_formats.table import FORMATS, format_json, load_format

HERE = Path(__file__).parent
SWIFT = HERE.parents[3] / ".cache/rivals/swift/bin/python"
MADE = json.loads((HERE / "ms_swift.json").read_text())["formats"]
TOOL_FRAMES = {
    "llama3": ("<|start_header_id|>tool<|end_header_id|>\n\n", "<|eot_id|>"),
    "llama4": ("<|header_start|>tool<|header_end|>\n\n", "<|eot|>"),
    "minimax_m2": ("]~b]tool\n", "[e~[\n"),
    "minimax_m3": ("]~b]tool\n", "[e~[\n"),
    "spark2_5": ("<｜start▁of▁sentence｜><|Tool|>", "<｜end▁of▁sentence｜>"),
    "xing4_0": ("<_observation>", ""),
    "ling3": ("<role>OBSERVATION</role>", "<|role_end|>"),
    "seed_oss": ("<seed:bos>tool\n", "<seed:eos>"),
    "kimi_k25": ("<|im_system|>tool<|im_middle|>", "<|im_end|>"),
}


def hugging_face(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The row's messages with calls as members of messages, members in their order."""
    messages: list[dict[str, Any]] = []
    for message in row["messages"]:
        if message["role"] != "tool_call":
            messages.append(dict(message))
            continue
        if messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        call = {"type": "function", "function": json.loads(message["content"])}
        messages[-1].setdefault("tool_calls", []).append(call)
    return messages


def write(name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    written = _native.AgentFormat(name, format_json(name)).write(json.dumps(messages), json.dumps(tools))
    found: list[dict[str, Any]] = json.loads(written)
    return found


def in_frame(name: str, messages: list[dict[str, Any]]) -> str:
    """The messages as a chat template of the family would write them."""
    words = MADE[name]["frame"]
    before, opened = words["prompt"].split("{{QUERY}}")
    bot = opened[opened.rindex(words["chat_sep"]) + len(words["chat_sep"]) :] if words["chat_sep"] in opened else opened
    out = "" if messages[0]["role"] == "system" else words["prefix"]
    for index, message in enumerate(messages):
        content = message["content"]
        following = messages[index + 1]["role"] if index + 1 < len(messages) else ""
        match message["role"]:
            case "tool_declare":
                out += f"<|im_system|>tool_declare<|im_middle|>{content}<|im_end|>"
            case "system" if name == "kimi_k25":
                out += f"<|im_system|>system<|im_middle|>{content}<|im_end|>"
            case "system" if name == "kimi_k3":
                kind = f' type="{message["type"]}"' if "type" in message else ""
                out += f'<|open|>message role="system"{kind}<|sep|>{content}<|close|>message<|sep|><|end_of_msg|>'
            case "system":
                out += words["system_prefix"].replace("{{SYSTEM}}", content)
            case "user":
                out += before + content + opened
            case "tool":
                opening, closing = TOOL_FRAMES[name]
                out += opening + content + closing + (bot if following != "tool" else "")
            case _:
                last = "" if content.endswith("<|observation|>") else words["suffix"]
                out += content + (words["chat_sep"] if following else last)
    return out


def expected(name: str, case: str) -> str | None:
    """What ms-swift gives, and where we know better; None where it gives nothing."""
    made = MADE[name]["texts"][case]
    if isinstance(made, str):  # what it raised
        return None
    text: str = MADE[name]["heads"][made[0]] + made[1]
    messages = CASES[case]["messages"]
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if system and name in ("react_en", "react_zh", "react_grpo", "toolbench", "chatglm4", "glm4"):
        assert system not in text  # it drops the row's system message
        start = text.index("<sys>") + len("<sys>")
        text = text[:start] + system + "\n\n" + text[start:]
    if name == "glm4_5" and case == "words: one space":
        text = text.replace(" <tool_call>", "<tool_call>")  # its templates trim words; it keeps white space alone
    if name == "mistral":
        text = text.replace("]</s></s>", "]</s>")  # it ends a turn of calls twice
    return text


def test_every_format_of_ms_swift_is_here() -> None:
    assert list(FORMATS) == sorted(MADE)


@pytest.mark.slow
@pytest.mark.skipif(not SWIFT.exists(), reason="ms-swift's environment is not there; run make rivals")
def test_the_texts_kept_here_are_what_ms_swift_writes(tmp_path: Path) -> None:
    made, env = tmp_path / "made.json", os.environ | {"PYTHONPATH": str(HERE.parents[2])}
    subprocess.run([SWIFT, HERE / "capture.py", made], check=True, env=env)
    assert made.read_bytes() == (HERE / "ms_swift.json").read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_text_equals_ms_swift(name: str) -> None:
    for case, row in CASES.items():
        text = expected(name, case)
        if text is not None:
            assert in_frame(name, write(name, hugging_face(row), row["tools"])) == text, case


@pytest.mark.parametrize(("name", "types"), [("seed_oss", "(int | None)"), ("kimi_k25", "weight: number | null")])
def test_a_parameter_of_several_types_lists_them(name: str, types: str) -> None:
    row = CASES["deep definitions"]  # ms-swift raises
    assert expected(name, "deep definitions") is None
    assert types in write(name, hugging_face(row), row["tools"])[0]["content"]


LOST = {("minimax_m3", f"values: {case}") for case in ("constants", "lists", "nested")}
"""As in the model's own template: a null is not written, and an empty list without a schema is written as nothing."""


@pytest.mark.parametrize("name", FORMATS)
def test_calls_that_were_written_are_read(name: str) -> None:
    for case, row in CASES.items():
        for message in hugging_face(row):
            if "tool_calls" not in message or (name, case) in LOST:
                continue
            text = write(name, [{"role": "user", "content": "?"}, message], row["tools"])[-1]["content"]
            calls = [call["function"] for call in message["tool_calls"]]
            words, found = read_calls(name, text, row["tools"])
            assert found == [{"name": call["name"], "arguments": call["arguments"]} for call in calls], case
            assert words.strip().startswith(message["content"].strip()), case


@pytest.mark.parametrize("name", FORMATS)
def test_words_without_calls_stay_words(name: str) -> None:
    for text in ("", "The mill turns.", "a < b and {c} [d]"):
        assert read_calls(name, text) == (text, [])
    assert load_format(name)["answers"] in ("user", "tool", "turn")
