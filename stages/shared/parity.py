"""What stages that change weights compare two models on: prompts or stored rows; and numbers of three digits."""

from pathlib import Path
from typing import Any

from postmill.io.model_folder import vocab_size
from postmill.io.schemas import TOKENS_V1
from postmill.io.table import TableReader
from postmill.stages.protocol import Input
from postmill.stages.shared.hf import load_tokenizer

REPORT = "parity.json"
_PROMPTS = (
    "Who are you?",
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain why the sky is blue to a child of six.",
    "def fibonacci(n):",
    "List three fruits and their colours.",
    "Translate to German: good morning.",
    "What is 17 times 23?",
)


def prompt_ids(model: Path) -> list[list[int]]:
    """A few prompts in the model's own template, or bare where it has none; byte values where no tokenizer is."""
    if not (model / "tokenizer.json").is_file():
        limit = vocab_size(model) or 256
        return [[byte % limit for byte in prompt.encode()] for prompt in _PROMPTS]
    tokenizer = load_tokenizer(model)
    if not tokenizer.chat_template:
        return [tokenizer(prompt).input_ids for prompt in _PROMPTS]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for prompt in _PROMPTS
    ]


def stored_rows(rows: Input) -> list[list[int]]:
    """The first 64 rows of a `tokens` artifact, without empty ones."""
    assert rows.artifact is not None
    table = TableReader(rows.artifact.file("tokens.arrow"), TOKENS_V1)
    return [ids for ids in table.batch(0)["input_ids"].slice(0, 64).to_pylist() if ids]


def first_tokens(rows: list[list[int]], budget: int) -> list[list[int]]:
    """Rows cut alike so that together they have at most `budget` tokens."""
    rows = rows[:budget]
    share = max(1, budget // max(1, len(rows)))
    return [row[:share] for row in rows]


def rounded(value: Any) -> float:
    """To three digits: more would only repeat the rounding of one machine."""
    return float(f"{float(value):.3g}")
