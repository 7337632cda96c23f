"""Agent formats: how tools, calls and what tools answer are written as text, one file each.

A file says both ways in one place. Writing: Jinja sources that `tokenize` renders into messages before the chat
template sees them (`ext/rust/core/src/agents` says what each may use). Reading, in `[read]`: patterns that find calls
in what a model wrote (`read.py`). `like` takes what a file does not say from another one.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

FORMATS = (
    "chatglm4",
    "deepseek_v3_1",
    "deepseek_v4",
    "deepseek_v41",
    "gemma4",
    "glm4",
    "glm4_5",
    "glm4_7",
    "glm5_1",
    "hermes",
    "hunyuan_hermes",
    "hy_v3",
    "hy_v3_preview",
    "kimi_k25",
    "kimi_k3",
    "ling3",
    "llama3",
    "llama4",
    "minicpm5",
    "minimax_m2",
    "minimax_m3",
    "mistral",
    "qwen3_5",
    "qwen3_coder",
    "qwen_en",
    "qwen_en_parallel",
    "qwen_zh",
    "qwen_zh_parallel",
    "react_en",
    "react_grpo",
    "react_zh",
    "seed_oss",
    "spark2_5",
    "toolbench",
    "xing4_0",
    "youtu",
)


@cache
def load_format(name: str) -> dict[str, Any]:
    """The members of a format's file, with those of the format it is `like`. `name` is one of `FORMATS`."""
    import tomllib  # most runs of `tokenize` use no format

    text = (Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8")
    own = tomllib.loads(text)
    base = own.pop("like", None)
    return own if base is None else load_format(base) | own


def format_json(name: str) -> str:
    """A format as the Rust core takes it."""
    return json.dumps(load_format(name), ensure_ascii=False)
