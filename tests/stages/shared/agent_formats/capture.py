"""Writes `ms_swift.json`: rows of our own, and the text that ms-swift makes of each in each of its agent templates.

Run in ms-swift's own environment (`make rivals`): .cache/rivals/swift/bin/python capture.py
"""

import copy
import json
import types
from pathlib import Path

from swift.agent_template.mapping import agent_template_map
from swift.template.base import Template
from swift.template.register import TEMPLATE_MAPPING

WEIGH = {
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
ORDER = {
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
BARE = {"type": "function", "function": {"name": "tide", "description": "Says when the tide turns.", "parameters": {}}}


def call(name, **arguments):
    return {"role": "tool_call", "content": json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)}


def said(role, content, **more):
    return {"role": role, "content": content} | more


ROWS = [
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
PLAIN = {
    "prefix": "",
    "system_prefix": "<sys>{{SYSTEM}}</sys>",
    "prompt": "<user>{{QUERY}}</user><bot>",
    "chat_sep": "</bot>",
    "suffix": "</bot>",
}
SEED = {
    "prefix": "",
    "system_prefix": "<seed:bos>system\n{{SYSTEM}}<seed:eos>",
    "prompt": "<seed:bos>user\n{{QUERY}}<seed:eos><seed:bos>assistant\n",
    "chat_sep": "<seed:eos>",
    "suffix": "<seed:eos>",
}
SAME_NAME = (
    "llama3 llama4 deepseek_v3_1 deepseek_v4 deepseek_v41 gemma4 glm4_5 xing4_0 hy_v3 ling3 minimax_m2 kimi_k25 kimi_k3"
    " spark2_5"
)
FAMILIES = {name: name for name in SAME_NAME.split()} | {"minimax_m3": "minimax_m3_vl", "mistral": "mistral_2512"}


def frame(name):
    if name == "seed_oss":
        return SEED
    if name not in FAMILIES:
        return PLAIN
    meta = TEMPLATE_MAPPING[FAMILIES[name]]
    return {key: "".join(getattr(meta, key) or []) for key in PLAIN}


class Preparing:
    """The half of ms-swift's Template that prepares messages, with no tokenizer."""

    template_backend = "swift"
    is_training = True
    _preprocess_tools = Template._preprocess_tools
    _preprocess_tool_call = Template._preprocess_tool_call
    _preprocess_standalone_tools = Template._preprocess_standalone_tools
    _swift_prepare_inputs = Template._swift_prepare_inputs

    def __init__(self, name):
        self.agent_template = agent_template_map[name]()
        words = frame(name)
        lists = {key: [words[key]] if words[key] else [] for key in words}
        self.template_meta = types.SimpleNamespace(**lists)


def text_of(name, row):
    """As `Template._swift_encode` puts contexts together."""
    row = copy.deepcopy(row)
    system = row["messages"].pop(0)["content"] if row["messages"][0]["role"] == "system" else None
    inputs = types.SimpleNamespace(messages=row["messages"], tools=row["tools"], system=system)
    template, words = Preparing(name), frame(name)
    template._preprocess_tools(inputs)
    template._swift_prepare_inputs(inputs)
    system = template.agent_template._format_tools(inputs.tools, system, inputs.messages[0])
    out = [words["system_prefix"].replace("{{SYSTEM}}", system) if system else words["prefix"]]
    pairs = list(zip(inputs.messages[::2], inputs.messages[1::2], strict=True))
    for index, (asked, answered) in enumerate(pairs):
        if asked["role"] == "tool":
            out += asked["content"]
        else:
            out.append(words["prompt"].replace("{{QUERY}}", asked["content"]))
        answer = answered["content"]
        out += answer if isinstance(answer, list) else [answer]
        if index + 1 < len(pairs):
            out.append(words["chat_sep"] if pairs[index + 1][0]["role"] != "tool" else "")
        else:
            out.append("" if out[-1].endswith("<|observation|>") else words["suffix"])
    return "".join(out)


def main():
    formats = {
        name: {"frame": frame(name), "texts": [text_of(name, row) for row in ROWS]} for name in agent_template_map
    }
    fixture = {"origin": "ms-swift 4.6.0", "rows": ROWS, "formats": formats}
    Path(__file__).with_name("ms_swift.json").write_text(json.dumps(fixture, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
