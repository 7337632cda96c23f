"""Conversations made to break seams, masks and templates: seeded, so that every run sees the same."""

import random
from typing import Any

# ruff: noqa: E501
PIECES = [
    "", " ", "\n", "\n\n", "\r\n", "\t", "  \n", "a", "Hello", " world", "don't", "I'll", "1234567", "3.14", "...", "?!", "::",
    "你好，世界", "こんにちは", "안녕", "Привет", "مرحبا", "é", "e\u0301", "ﬁ", "Å", "🙂", "👩‍👩‍👧", "\u200b", "\ufeff", "\u00a0", "\u2028",
    "<|im_end|>", "<|im_start|>", "<|im_end|>\n<|im_start|>assistant\n", "<|eot_id|>", "<|start_header_id|>user<|end_header_id|>",
    "<|endoftext|>", "<think>", "</think>", "<think>\n\n</think>\n\n", "<tool_call>\n{}\n</tool_call>", "<tool_response>", "assistant",
    "assistant\n", "{{ x }}", "{% if %}", "{# c #}", "{%- generation %}", "<|", "|>", "\\n", "\\", '"', "'", "`", "```py\nx = 1\n```",
    "Action:", "Observation:", "\x00", "\x1f", "\x7f", "x" * 300, "   ", "<b>&amp;</b>", "http://a.b/c?d=e&f", "𝔘𝔫𝔦", "İ", "ß",
]  # fmt: skip


def text(rng: random.Random, most: int = 6) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(0, most)))


def conversation(rng: random.Random, *, tools: bool = False) -> dict[str, Any]:
    """One row: optional system, one to four exchanges, sometimes tool calls, marks on some replies."""
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": text(rng)})
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": text(rng) + rng.choice(["", "q", "?"])})
        if tools and rng.random() < 0.5:
            arguments = {rng.choice(["q", "city", "ключ"]): text(rng, 2), "n": rng.choice([1, 2.5, None, True])}
            call = {"type": "function", "function": {"name": "search", "arguments": arguments}}
            messages.append({"role": "assistant", "content": text(rng, 2), "tool_calls": [call]})
            messages.append({"role": "tool", "content": text(rng)})
        reply: dict[str, Any] = {"role": "assistant", "content": text(rng)}
        if rng.random() < 0.1:
            reply["loss"] = rng.random() < 0.5
        if rng.random() < 0.1:
            reply["loss_scale"] = rng.choice([0.0, 0.5, 2.0])
        messages.append(reply)
    row: dict[str, Any] = {"messages": messages}
    if tools:
        schema = {"type": "object", "properties": {"q": {"type": "string", "description": text(rng, 2)}}}
        row["tools"] = [{"type": "function", "function": {"name": "search", "parameters": schema}}]
    return row


def conversations(count: int, seed: int = 7) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [conversation(rng, tools=rng.random() < 0.3) for _ in range(count)]
