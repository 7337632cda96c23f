"""Jinja as templates may use it: each snippet gives the text that transformers gives, or fails where it fails.

The oracle is the jinja2 package in the environment that transformers makes of it. `data/jinja_snippets.txt` holds the
snippets, one a line.
"""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

native = pytest.importorskip("postmill._native")
chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")

MESSAGES = [
    {"role": "user", "content": "How heavy <is> the 'sack'?", "parts": [{"n": 1}, {"n": 2, "parts": [{"n": 3}]}]},
    {"role": "assistant", "content": "25 kg, well-known to the mill-wright -- as ever."},
    {"role": "User", "content": ""},
]

SNIPPETS = [
    line
    for line in Path(__file__).with_name("data").joinpath("jinja_snippets.txt").read_text().splitlines()
    if not line.startswith("# ")
]


def theirs(source: str, **variables: Any) -> str | None:
    """Transformers compiles each source once, so many values of `variables` in one source are cheap."""
    try:
        text: str = chat_template_utils._compile_jinja_template(source).render(messages=MESSAGES, **variables)
    except Exception:  # a template may raise anything
        return None
    return text


def ours(source: str) -> str | None:
    try:
        text: str = native.ChatTemplate(source).render_text(json.dumps(MESSAGES))
    except native.NativeError:
        return None
    return text


@pytest.mark.parametrize("source", SNIPPETS)
def test_a_snippet_gives_the_text_of_jinja2(source: str) -> None:
    assert ours(source) == theirs(source)


def literal(value: Any) -> str:
    return repr(value) if not isinstance(value, bool) else str(value).lower()


VALUES: list[Any] = [0, 7, -12345, 2.5, -0.0, 1e-7, 123456789.125, 1e16, 0.5, 99.995, "ab", "é-x", "", True]


def test_formats_give_the_text_of_python_or_are_refused() -> None:
    rng = random.Random(3)
    compared = refused = 0
    for _ in range(3000):
        value = rng.choice(VALUES)
        fill = rng.choice(["", "", "*", "0"])
        align = rng.choice(["", "<", ">", "^", "="]) if fill in ("", "0") else rng.choice("<>^=")
        spec = fill + align + rng.choice(["", "", "+", "-", " "]) + rng.choice(["", "", "#"]) + rng.choice(["", "0"])
        spec += rng.choice(["", "1", "9"]) + rng.choice(["", "", ",", "_"]) + rng.choice(["", "", ".0", ".1", ".4"])
        spec += rng.choice([*"bdoxXeEfFgGns%", "", ""])
        flags = "".join(rng.sample("-+ #0", rng.randrange(3)))
        percent = f"%{flags}{rng.choice(['', '8', '.2', '9.3'])}{rng.choice('diuoxXeEfFgGsr')}"
        for form, use, oracle in (
            (f"{{:{spec}}}", "'{}'.format({})", "{{ form.format(value) }}"),
            (percent, "'{}' % {}", "{{ form % value }}"),
        ):
            source = f"{{{{ {use.format(form, literal(value))} }}}}"
            found, expected = ours(source), theirs(oracle, form=form, value=value)
            if found is None:
                refused += expected is not None
            else:
                assert found == expected, source
                compared += 1
    assert compared > 2500
    assert refused < compared / 2


def test_wrapped_and_cut_texts_equal_jinja2() -> None:
    rng = random.Random(5)
    pieces = [
        "mill",
        "-",
        "--",
        " ",
        "  ",
        "half-",
        "a",
        "well-known",
        ".",
        "\n",
        "x" * 11,
        "'",
        "---",
        "\t",
        "race,",
        "_b",
        "3-4",
    ]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randrange(9)))
        for use in (
            f"wordwrap({rng.randrange(1, 14)}, {literal(rng.random() < 0.5)}, '/', {literal(rng.random() < 0.7)})",
            f"truncate({rng.randrange(3, 20)}, {literal(rng.random() < 0.5)}, leeway={rng.randrange(3)})",
            f"urlencode ~ ({text!r} | e)",
        ):
            source = f"{{{{ {text!r} | {use} }}}}"
            assert ours(source) == theirs(source), source


def test_portions_of_lists_equal_jinja2() -> None:
    for length, number, fill in itertools.product(range(7), range(1, 5), ["", ", 'x'", ", none"]):
        for use in ("batch", "slice"):
            source = f"{{{{ range({length}) | {use}({number}{fill}) | list }}}}"
            assert ours(source) == theirs(source), source


def test_loops_that_call_themselves_without_end_are_refused() -> None:
    source = "{% set ns = namespace(x=[1]) %}{% for p in [1] recursive %}{{ loop(ns.x) }}{% endfor %}"
    with pytest.raises(native.NativeError, match="deep"):
        native.ChatTemplate(source).render_text(json.dumps(MESSAGES))
    with pytest.raises(native.NativeError, match="more than 1000 arguments"):
        native.ChatTemplate("{{ f(*range(2000)) }}{% macro f() %}{{ varargs }}{% endmacro %}").render_text("[]")
