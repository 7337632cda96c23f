"""Raw rows: every common shape reads as the same chat, and every bad row is named by line, column and path."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postmill import _native

CORPUS = Path(__file__).resolve().parent.parent / "corpus" / "jsonl"
EXPECTED = (CORPUS / "EXPECTED").read_text("utf-8").splitlines()


def normalize(*rows: Any, **options: Any) -> list[Any]:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return [json.loads(row) for row in _native.normalize_lines(data, "x", **options)]


# --- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda line: line.split(".")[0])
def test_bad_rows(expected: str) -> None:
    name = expected.split(":", maxsplit=1)[0]
    with pytest.raises(_native.NativeError) as caught:
        _native.normalize_lines((CORPUS / name).read_bytes(), name)
    assert str(caught.value) == expected
    assert caught.value.code == 65
    assert len(expected) <= 200


def test_every_bad_row_has_its_line() -> None:
    assert sorted(path.name for path in CORPUS.glob("*.jsonl")) == sorted(line.split(":")[0] for line in EXPECTED)


@pytest.mark.parametrize("line", [1, 2, 8619, 49_999, 50_000])
def test_the_first_bad_line_of_many_is_found(line: int) -> None:
    good = b'{"query":"q","response":"a"}\n'
    data = good * (line - 1) + b'{"query":"q",response":"a"}\n' + good * (50_000 - line)
    with pytest.raises(_native.NativeError, match=f"^x:{line}:14: "):
        _native.normalize_lines(data, "x")


def test_a_row_cut_anywhere_is_called_cut() -> None:
    row = '{"messages":[{"role":"user","content":"é\\n\\ud83d\\ude00"},{"role":"assistant","content":"a"}],"x":-1.5e3}'
    first, last = b'{"text":"a"}\n', row.encode()
    assert len(_native.normalize_lines(first + last, "x")) == 2
    for end in range(1, len(last)):
        with pytest.raises(_native.NativeError, match=r"^x:2:\d+: .*file ends inside a record") as caught:
            _native.normalize_lines(first + last[:end], "x")
        assert caught.value.reason == "truncated"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_break_it(data: bytes) -> None:
    try:
        _native.normalize_lines(data, "x")
    except _native.NativeError as fault:
        assert "\n" not in str(fault)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_damaged_rows_are_rows_or_errors(seed: int) -> None:
    dice = random.Random(seed)
    data = bytearray(
        json.dumps({"messages": [{"role": "user", "content": "q\u00e9"}], "tools": [{"a": [1.5]}]}).encode()
    )
    for _ in range(dice.randrange(1, 4)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    try:
        rows = _native.normalize_lines(bytes(data), "x")
    except _native.NativeError:
        return
    for row in rows:
        json.loads(row)


# --- good rows --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_shapes_of_one_chat(turns: list[tuple[str, str]], ensure_ascii: bool, indent: bool) -> None:
    expected = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    *history, (query, response) = turns
    shapes = [
        {"messages": expected},
        {"conversations": [{"from": m["role"], "value": m["content"]} for m in expected]},
        {"conversation": [{"human": q, "assistant": a} for q, a in turns]},
        {"query": query, "response": response, "history": history},
        {"instruction": query, "input": "", "output": response, "history": json.dumps(history)},
        {"prompt": expected[:-1], "completion": expected[-1:]},
        {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in expected]},
    ]
    separators = (" , ", " : ") if indent else (",", ":")
    lines = "".join(json.dumps(row, ensure_ascii=ensure_ascii, separators=separators) + "\n" for row in shapes)
    for shape, row in zip(shapes, _native.normalize_lines(lines.encode(), "x"), strict=True):
        found = json.loads(row)["messages"]
        marks = [message.pop("loss", None) for message in found]
        assert found == expected
        # what the assistant says in a prompt is not trained on
        untrained = [[False] if m["role"] == "assistant" and "prompt" in shape else None for m in expected[:-1]]
        assert marks == [*untrained, None]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_arguments_and_schemas_are_kept(value: dict[str, Any]) -> None:
    """Against Python's json: free-form values come out as they went in, as objects or as JSON text."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": value}}]
    call = {"type": "function", "function": {"name": "f", "arguments": value}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    expected = {"messages": messages, "tools": tools}
    as_text = {"name": "f", "arguments": json.dumps(value)}
    shapes = [
        expected,
        {"messages": [messages[0], {"role": "assistant", "content": None, "tool_calls": [as_text]}], "tools": tools},
        {"messages": [messages[0], {"role": "tool_call", "content": json.dumps(as_text)}], "tools": json.dumps(tools)},
    ]
    assert normalize(*shapes) == [expected] * 3


@settings(deadline=None)
@given(JSON)
def test_other_columns_travel(value: Any) -> None:
    (row,) = normalize({"query": "q", "response": "a", "answer_note": value})
    assert json.loads(row["extra"]) == {"answer_note": value}


@settings(deadline=None)
@given(JSON)
def test_tool_answers_are_written_as_python_writes_them(value: Any) -> None:
    if isinstance(value, str) or value is None:
        return
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, str) or (isinstance(v, dict) and "type" in v) for v in value)
    ):
        return  # a list of content parts
    (row,) = normalize({"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": value}]})
    assert row["messages"][1]["content"] == json.dumps(value, ensure_ascii=False)


def test_columns_and_names() -> None:
    row = {"ask": "who is {{NAME}}?", "output": "{{AUTHOR}} made it", "answer": 3}
    (found,) = normalize(row, columns=[("ask", "query"), ("output", "response")], model_name="Mill", model_author="Ann")
    expected = [{"role": "user", "content": "who is Mill?"}, {"role": "assistant", "content": "Ann made it"}]
    assert found == {"messages": expected, "extra": '{"answer":3}'}


# --- lines and conversions --------------------------------------------------------------------------------------------


@given(st.lists(JSON, max_size=5), st.integers(1, 50), st.sampled_from([None, 0, 2]), st.booleans())
def test_splitting_a_list(items: list[Any], piece: int, indent: int | None, ensure_ascii: bool) -> None:
    data = json.dumps(items, indent=indent, ensure_ascii=ensure_ascii).encode()
    splitter = _native.JsonSplitter()
    out = b"".join(splitter.feed(data[i : i + piece]) for i in range(0, len(data), piece)) + splitter.finish()
    assert [json.loads(line) for line in out.splitlines()] == items
    assert out.count(b"\n") == len(items)


def without_nulls(value: Any) -> Any:
    """The oracle for tables: members that are null are absent, items that are null are not."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


STRUCT = st.fixed_dictionaries(
    {
        "role": st.none() | TEXT,
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "b": st.none() | st.booleans(),
    }
)
SCHEMA = pa.schema(
    {
        "xs": pa.list_(pa.struct({"role": pa.string(), "n": pa.int64(), "f": pa.float64(), "b": pa.bool_()})),
        "s": pa.struct({"t": pa.large_list(pa.string_view())}),
        "k": pa.dictionary(pa.int8(), pa.string()),
    }
)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "xs": st.none() | st.lists(st.none() | STRUCT, max_size=3),
                "s": st.none() | st.fixed_dictionaries({"t": st.none() | st.lists(st.none() | TEXT, max_size=2)}),
                "k": st.none() | st.sampled_from(["a", "b"]),
            }
        ),
        max_size=5,
    ),
    st.integers(0, 3),
)
def test_tables_as_lines(rows: list[Any], skip: int) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA).slice(min(skip, len(rows)))
    found = [json.loads(line) for line in _native.batch_to_lines(batch).splitlines()]
    assert found == [without_nulls(row) for row in rows[skip:]]


def test_a_table_with_bytes_says_so() -> None:
    batch = pa.RecordBatch.from_pydict({"image": [b"x"]})
    with pytest.raises(
        _native.NativeError, match=r'column "image": values of type Binary have no JSON form; cast or drop'
    ):
        _native.batch_to_lines(batch)


def test_scanning() -> None:
    data = b"\xef\xbb\xbfa\r\n\n  \nb"
    assert _native.scan_lines(data) == ([(1, 3, 4, True), (4, 10, 11, False)], True, True)
    assert _native.count_records(data, True) == (4, 2)
    with pytest.raises(_native.NativeError, match="the line is 5 bytes long, the limit is 3"):
        _native.scan_lines(b"12345\n", 1, 3)
