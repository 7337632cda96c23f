"""Loss-scale strategies against what ms-swift itself computes, and against Python's own `re`."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postmill import _native

FIXTURE = json.loads((Path(__file__).parent / "data" / "ms_swift_loss_scale.json").read_text())
"""[spec, reply, query, [[text, weight]]]; its `origin` says which version made it."""


def test_ms_swift_rules_equal_ms_swift() -> None:
    for spec, text, query, expected in FIXTURE["cases"]:
        got = _native.LossScale(spec, "ms-swift").segments(text, query)
        assert got == [tuple(pair) for pair in expected], (spec, text, query)


def python_spans(patterns: list[tuple[str, float]], text: str) -> list[float]:
    """Weight of every character: leftmost match, then first pattern listed, in plain Python."""
    weights, at = [1.0] * len(text), 0
    while at <= len(text):
        found = [(m.start(), i, m) for i, (p, _) in enumerate(patterns) if (m := re.compile(p, re.S).search(text, at))]
        if not found:
            break
        _, index, match = min(found, key=lambda hit: hit[:2])
        weights[match.start() : match.end()] = [patterns[index][1]] * (match.end() - match.start())
        at = match.end() if match.end() > match.start() else match.end() + 1
    return weights


PATTERNS = [r"a+", r"(?<=b)c", r"^\s*x", r"z$", r"\w\d", r"(?:ab|a)b?", r"[^a]c(?!d)", r"b.c", r"é\b"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(PATTERNS), st.sampled_from([0.0, 0.5, 2.0, -1.0])), min_size=1, max_size=4),
    st.text(alphabet="abcdxz1 \né🙂", max_size=24),
)
def test_regex_spans_equal_python_re(patterns: list[tuple[str, float]], text: str) -> None:
    rules = json.dumps([{"regex": pattern, "weight": weight} for pattern, weight in patterns])
    segments = _native.LossScale("r.json", "spans", [("r.json", rules)]).segments(text)
    assert "".join(part for part, _ in segments) == text
    got = [weight for part, weight in segments for _ in part]
    assert got == python_spans(patterns, text)


@pytest.mark.parametrize(
    ("spec", "files", "message"),
    [
        ("hermse", [], 'loss_scale: "hermse" is neither a strategy'),
        ("a.json", [("a.json", '{"(": [1]}')], 'a.json: pattern "(" does not compile'),
        ("a.json", [("a.json", '{"x": [1, 2, 3]}')], 'a.json: "x": 3 weights'),
        ("a.json", [("a.json", '{"x": [1e999]}')], "not a finite"),
        ("a.json", [("a.json", '{"x": [1], "y": [1, 2]}')], "split the file by kind"),
        ("a.json", [("a.json", "[1]")], "a.json: rule 0: expected an object"),
        ("a.json", [("a.json", "nonsense")], "a.json: not JSON"),
    ],
)
def test_bad_specifications_are_refused(spec: str, files: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(_native.NativeError, match=re.escape(message)) as raised:
        _native.LossScale(spec, "spans", files)
    assert raised.value.code == 2


def test_table_14_boosts_calls_by_three() -> None:
    got = _native.LossScale("swift-table-14").segments("Thought: t Action: a Action Input: {} Observation: 1")
    assert got == [("Thought: t ", 1.0), ("Action: a Action Input: {} ", 3.0), ("Observation:", 2.0), (" 1", 0.0)]
