"""Rows with tools for tests of agent formats: calls, parallel calls, answers, errors, thinking, in ms-swift's form.

A call is a message of its own, `tool_call`, whose content is its JSON. `capture.py` beside the tests gives the rows to
ms-swift; the tests turn them into Hugging Face's form.
"""

import json
from typing import Any

Row = dict[str, Any]

WEIGH: Row = {
    "type": "function",
    "function": {
        "name": "weigh_sack",
        "description": "Weighs one sack — in kg.",
        "parameters": {
            "type": "object",
            "properties": {
                "sack": {"type": "integer", "description": "Number of the sack."},
                "unit": {"type": "string", "enum": ["kg", "lb"], "description": "Unit <of> the answer"},
                "grades": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["sack"],
        },
    },
}
ORDER: Row = {
    "type": "function",
    "function": {
        "name": "order",
        "description": "Orders grain.",
        "parameters": {
            "type": "object",
            "properties": {
                "goods": {
                    "type": "object",
                    "description": "What",
                    "properties": {"kind": {"type": "string"}, "tons": {"type": "number"}},
                    "required": ["kind"],
                },
                "urgent": {"type": "boolean"},
                "note": {"type": "string"},
                "limits": {"type": "array", "items": {"type": "number"}},
                "until": {"type": "string", "nullable": True},
            },
        },
    },
}
BARE: Row = {
    "type": "function",
    "function": {"name": "tide", "description": "Says when the tide turns.", "parameters": {}},
}


def call(name: str, **arguments: Any) -> Row:
    return {"role": "tool_call", "content": json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)}


def said(role: str, content: str, **more: Any) -> Row:
    return {"role": role, "content": content} | more


BASE: list[Row] = [
    {
        "tools": [WEIGH, ORDER],
        "messages": [
            said("system", "You mind the mill."),
            said("user", "How heavy is sack 3?"),
            said("assistant", "I look.\n"),
            call("weigh_sack", sack=3, unit="kg"),
            said("tool", '{"kg": 25.5}', name="weigh_sack"),
            said("assistant", "25.5 kg."),
        ],
    },
    {
        "tools": [WEIGH, BARE],
        "messages": [
            said("user", "Sacks 1 and 2, and the tide?"),
            call("weigh_sack", sack=1),
            call("weigh_sack", sack=2),
            call("tide"),
            said("tool", "25\n", name="weigh_sack"),
            said("tool", "26", name="weigh_sack"),
            said("tool", "at 4", name="tide"),
            said("assistant", "25, 26, and at four."),
            said("user", "Thanks."),
            said("assistant", "You are welcome."),
        ],
    },
    {
        "tools": [ORDER],
        "messages": [
            said("user", "Order oats."),
            call(
                "order",
                goods={"tons": 1.5, "kind": 'oats — "new"'},
                urgent=True,
                note="line one\nline <two> & 'three'",
                limits=[1, 2.25, -3],
                until="soon",
            ),
            said("tool", "done", name="order"),
            said("assistant", "Ordered."),
        ],
    },
    {
        "tools": [WEIGH],
        "messages": [said("user", "Weigh sack 9."), said("assistant", "Yes"), call("weigh_sack", sack=9)],
    },
    {
        "tools": [WEIGH, BARE],
        "messages": [
            said("system", "Short answers."),
            said("user", "Sack 4, then the tide."),
            said("assistant", "Thought: first the sack.\n"),
            call("weigh_sack", sack=4, unit="lb", grades=["a", "b"]),
            said("tool", "55", name="weigh_sack"),
            said("assistant", "Thought: now the tide.\n"),
            call("tide"),
            said("tool", "at 5", name="tide"),
            said("assistant", "Final Answer: 55 lb, at five."),
        ],
    },
    {"tools": [BARE], "messages": [said("user", "Hello."), said("assistant", "Good morning.")]},
]


def answered(*calls: Row, tools: list[Row] | None = None, words: str = "", answer: str = "ok", system: str = "") -> Row:
    """A row in which the assistant says `words`, makes `calls`, and each gets the same answer."""
    messages = [said("system", system)] if system else []
    messages += [said("user", "Go."), *([said("assistant", words)] if words else []), *calls]
    messages += [said("tool", answer, name=json.loads(one["content"])["name"]) for one in calls]
    messages += [said("assistant", "Done.")]
    return {"tools": tools or [BARE], "messages": messages}


def schema_of(value: Any) -> Row:
    """What a careful author would declare: many formats write the text 5 and the number 5 alike."""
    match value:
        case bool():
            return {"type": "boolean"}
        case dict():
            return {"type": "object", "properties": {key: schema_of(inner) for key, inner in value.items()}}
        case list():
            return {"type": "array", "items": schema_of(value[0])} if value else {"type": "array"}
        case _:
            names = {int: "integer", float: "number", str: "string", type(None): "null"}
            return {"type": names[type(value)]}


def typed(arguments: Row) -> Row:
    """The tool `tide` with these arguments."""
    return {"type": "function", "function": BARE["function"] | {"parameters": schema_of(arguments)}}


VALUES: dict[str, Any] = {
    "numbers": {"a": 0, "b": -1, "c": 1.0, "d": 1e20, "e": 2.5e-7, "f": 9007199254740993, "g": -0.0},
    "constants": {"yes": True, "no": False, "none": None},
    "texts like values": {"a": "5", "b": "true", "c": "null", "d": "{}", "e": "[1]", "f": "1.0", "g": ""},
    "quotes": {"a": "it's", "b": 'say "x"', "c": "both ' and \"", "d": "back\\slash", "e": "tab\there"},
    "lines": {"a": "one\ntwo\n", "b": "\n", "c": " padded "},
    "marks": {"a": "<b>&amp;</b>", "b": "a < b > c", "c": "{{x}} {% y %}"},
    "scripts": {"重量": "三公斤", "é": "naïve 😀", "emoji": "👩‍🌾"},
    "nested": {"a": {"b": {"c": [1, {"d": []}], "e": {}}}, "f": [[1, 2], [], ["x"]]},
    "lists": {"a": [], "b": [True, None], "c": ["x", "y's"], "d": [1.5, -2]},
    "none at all": {},
    "order": {"z": 1, "a": 2, "m": 3},
}
ANSWERS = {
    "an object": '{"kg": 25.5, "ok": true}',
    "an error": 'Error: no such sack\nTraceback: "x"',
    "nothing": "",
    "line breaks around": "\n25\n\n",
    "marks": "<tool_response>25</tool_response> &lt;",
    "another script": "二十五公斤",
    "a list": '[{"type": "text", "text": "25"}]',
}
WORDS = {
    "thinking": "<think>\nFirst the tide.\n</think>\n\n",
    "thinking, then words": "<think>\nFirst the tide.\n</think>\n\nI ask.",
    "words that end in a line break": "I ask.\n\n",
    "a thought": "Thought: I need the tide.\n",
    "one space": " ",
}
LONG: Row = {
    "tools": [BARE],
    "messages": [
        said("system", "You mind the mill."),
        said("user", "Tide?"),
        call("tide", day=1),
        said("tool", "at 4", name="tide"),
        said("assistant", "At four. And tomorrow: "),
        call("tide", day=2),
        call("tide", day=3),
        said("tool", "at 5", name="tide"),
        said("tool", "Error: too far", name="tide"),
        call("tide", day=2),
        said("tool", "at 5", name="tide"),
        said("assistant", "<think>\nDone.\n</think>\n\nAt five."),
        said("user", "Thanks. Once more."),
        said("assistant", "<think>\nAgain.\n</think>\n\nGladly."),
        call("tide"),
        said("tool", "at 6", name="tide"),
        said("assistant", "At six."),
        said("user", "Good night."),
        said("assistant", "Sleep well."),
    ],
}
DEEP: Row = {
    "type": "function",
    "function": {
        "name": "ship",
        "description": 'Ships <goods> & says "when".\nSecond line — 发货.',
        "parameters": {
            "type": "object",
            "properties": {
                "to": {
                    "type": "object",
                    "properties": {
                        "street": {"type": "string", "description": "Street"},
                        "lines": {
                            "type": "array",
                            "items": {"type": "object", "properties": {"n": {"type": "integer"}}},
                        },
                    },
                    "required": ["street"],
                },
                "how": {"type": "string", "enum": ["boat", "cart"], "default": "boat"},
                "weight": {"type": ["number", "null"], "minimum": 0.5},
                "any": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "flag": {"type": "boolean", "default": False},
            },
            "required": ["to", "how"],
            "additionalProperties": False,
        },
    },
}

CASES: dict[str, Row] = {f"base {number}": row for number, row in enumerate(BASE)}
CASES |= {
    f"values: {name}": answered(call("tide", **arguments), tools=[typed(arguments)])
    for name, arguments in VALUES.items()
}
CASES |= {f"answer: {name}": answered(call("tide", day=1), answer=answer) for name, answer in ANSWERS.items()}
CASES |= {
    f"two answers: {name}": answered(call("tide"), call("tide", day=2), answer=text) for name, text in ANSWERS.items()
}
CASES |= {f"words: {name}": answered(call("tide", day=1), words=words) for name, words in WORDS.items()}
CASES |= {
    "rounds": LONG,
    "rounds without a system message": LONG | {"messages": LONG["messages"][1:]},
    "ends in a call": {"tools": [BARE], "messages": LONG["messages"][1:3]},
    "ends in two calls": {"tools": [BARE], "messages": [*LONG["messages"][1:4], *LONG["messages"][5:7]]},
    "deep definitions": answered(
        call("ship", to={"street": "Quay", "lines": [{"n": 1}]}, how="cart"), tools=[DEEP, BARE]
    ),
    "three tools": answered(
        call("order", urgent=False), call("tide"), call("weigh_sack", sack=2), tools=[WEIGH, ORDER, BARE]
    ),
    "a system message of several lines": answered(call("tide"), system="You mind the mill.\n\nBe short.\n"),
    "a call in another script": answered(call("潮汐", 天=1), tools=[BARE]),
    "eight calls": answered(*(call("tide", day=day) for day in range(8))),
}
"""Rows by what is in them."""
