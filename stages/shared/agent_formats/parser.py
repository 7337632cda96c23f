"""A model's text, as it comes, to what it says, what it thinks, and the calls it makes.

Driven by data: the reasoning tags, and the agent format (`stages/shared/agent_formats`) that also writes calls for
training. Text is held back where a tag or a call may begin, so how a stream is cut never changes the result. From the
first call on, text is read when it is whole; what is no call that can be read is said as it stands, and no character is
lost.
"""

import re
from typing import Any, NamedTuple

from postmill.stages.shared.agent_formats.read import Call, find_calls, read_calls
from postmill.stages.shared.agent_formats.table import load_format

THINK = ("<think>", "</think>")
_SIGNS = (
    ("<arg_key>", "glm4_5"),
    ("<function=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<\uff5ctool\u2581call\u2581begin\uff5c>", "deepseek_v3_1"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<seed:tool_call>", "seed_oss"),
)
"""What a chat template writes around calls, and the format that reads it; the first that is found."""


class Part(NamedTuple):
    """A piece of an answer: one of the three."""

    content: str = ""
    reasoning: str = ""
    call: Call | None = None


def guess_format(template: str) -> str:
    """The agent format whose signs a chat template writes; empty if there is none."""
    return next((name for sign, name in _SIGNS if sign in template), "")


def opening(name: str) -> str:
    """The characters that every call of a format begins with."""
    rule = load_format(name)["read"]
    pattern = rule.get("block") or rule["call"]
    pattern = re.sub(r"^(\(\?m\)|\^|\(\?P<\w+>)+", "", pattern)
    prefix = ""
    at = 0
    while at < len(pattern):
        if pattern[at] == "\\" and not pattern[at + 1].isalnum():
            letter, at = pattern[at + 1], at + 2
        elif pattern[at] in ".[](){}*+?|^$\\":
            break
        else:
            letter, at = pattern[at], at + 1
        if pattern[at : at + 1] and pattern[at] in "*+?{":
            break
        prefix += letter
    return prefix


class Parser:
    """One answer. `agent_format`: name, or empty where calls are not looked for."""

    def __init__(
        self, *, agent_format: str, tools: list[dict[str, Any]] | None, reasons: bool, is_reasoning: bool = False
    ) -> None:
        """reasons: whether reasoning tags are looked for; is_reasoning: whether the prompt has opened them."""
        self._format, self._tools = agent_format, tools
        self._opening = opening(agent_format) if agent_format else ""
        self._is_reasoning, self._may_open = is_reasoning, reasons and not is_reasoning
        self._held = ""
        # a format whose calls may begin with anything is read when all of it is there
        self._is_calling = bool(agent_format) and not self._opening

    def push(self, text: str) -> list[Part]:
        """What more text adds."""
        self._held += text
        return self._drain(is_last=False)

    def finish(self) -> list[Part]:
        """What was held back, once nothing comes any more."""
        return self._drain(is_last=True)

    def _drain(self, *, is_last: bool) -> list[Part]:
        parts: list[Part] = []
        while self._held:
            before = (self._held, self._is_reasoning, self._may_open)
            if self._is_reasoning:
                parts += self._until(THINK[1], is_last=is_last, reasoning=True)
            elif self._may_open:
                self._look_for_reasoning(is_last=is_last)
            elif self._format and not self._is_calling:
                parts += self._until(self._opening, is_last=is_last, reasoning=False)
            elif not self._format:
                parts.append(Part(content=self._held))
                self._held = ""
            elif is_last:
                parts += self._read(self._held)
                self._held = ""
            if (self._held, self._is_reasoning, self._may_open) == before:
                break
        return parts

    def _look_for_reasoning(self, *, is_last: bool) -> None:
        """Reasoning opens an answer or does not come; white space before it is part of it."""
        text = self._held.lstrip()
        if text.startswith(THINK[0]):
            self._held, self._is_reasoning, self._may_open = text[len(THINK[0]) :], True, False
        elif is_last or (text and not THINK[0].startswith(text)):
            self._may_open = False

    def _until(self, mark: str, *, is_last: bool, reasoning: bool) -> list[Part]:
        at = self._held.find(mark)
        if at < 0:
            most = min(len(self._held), len(mark) - 1)
            kept = 0 if is_last else next((n for n in range(most, 0, -1) if self._held.endswith(mark[:n])), 0)
            at = len(self._held) - kept
            text, self._held = self._held[:at], self._held[at:]
        elif reasoning:
            text, self._held, self._is_reasoning = self._held[:at], self._held[at + len(mark) :], False
        else:
            text, self._held, self._is_calling = self._held[:at], self._held[at:], True
        if not text:
            return []
        return [Part(reasoning=text) if reasoning else Part(content=text)]

    def _read(self, text: str) -> list[Part]:
        """The calls, and what stands beside them. If one cannot be read, all of it is text."""
        try:
            said, calls = read_calls(self._format, text, self._tools)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            return [Part(content=text)]
        rule = load_format(self._format)["read"]
        if "block" in rule:
            spans = [match.span() for match in re.finditer(rule["block"], text, re.DOTALL)]
            num_found = sum(1 for a, b in spans for _ in find_calls(rule, text[a:b]))
        else:
            spans = [(match.start, match.end) for match in find_calls(rule, text)]
            num_found = len(spans)
        if not calls or num_found != len(calls):
            return [Part(content=text)]
        rest = "".join(text[a:b] for (_, a), (b, _) in zip(spans, [*spans[1:], (len(text), 0)], strict=True))
        parts = [Part(content=said)] if said else []
        parts += [Part(call=call) for call in calls]
        return [*parts, Part(content=rest)] if rest.strip() else parts
