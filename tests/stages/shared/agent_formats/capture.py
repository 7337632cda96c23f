"""Writes `ms_swift.json`: the text that ms-swift makes of each of our rows in each of its agent templates.

Run in ms-swift's own environment (`make rivals`):
PYTHONPATH=tests .cache/rivals/swift/bin/python tests/stages/shared/agent_formats/capture.py [FILE]
"""

import copy
import json
import sys
import types
from pathlib import Path

from agent_rows import CASES
from swift.agent_template.mapping import agent_template_map
from swift.template.base import Template
from swift.template.register import TEMPLATE_MAPPING

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
    """As `Template._swift_encode` puts contexts together: what stands before the first question, and all behind it."""
    row = copy.deepcopy(row)
    system = row["messages"].pop(0)["content"] if row["messages"][0]["role"] == "system" else None
    inputs = types.SimpleNamespace(messages=row["messages"], tools=row["tools"], system=system)
    template, words = Preparing(name), frame(name)
    template._preprocess_tools(inputs)
    template._swift_prepare_inputs(inputs)
    system = template.agent_template._format_tools(inputs.tools, system, inputs.messages[0])
    head = words["system_prefix"].replace("{{SYSTEM}}", system) if system else words["prefix"]
    out = []
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
    return head, "".join(out)


def made(name):
    """The frame of a format, what its texts start with (each once), and the texts: which start, and the rest; or
    what ms-swift raised."""
    heads, texts = [], {}
    for case, row in CASES.items():
        try:
            head, text = text_of(name, row)
        except Exception as error:  # whatever it raises is what the fixture says of the row
            texts[case] = f"{type(error).__name__}: {error}"
            continue
        if head not in heads:
            heads.append(head)
        texts[case] = [heads.index(head), text]
    return {"frame": frame(name), "heads": heads, "texts": texts}


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("ms_swift.json")
    fixture = {"origin": "ms-swift 4.6.0", "formats": {name: made(name) for name in agent_template_map}}
    out.write_text(json.dumps(fixture, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
