"""Does the merged model compute what the base with its adapters computes? Asked of both in float32, on the same tokens.

The two differ by the rounding of the merged weights to the base's dtype, and by nothing else if the merge is right. The
measure is the mean difference of logits over their standard deviation, so that one limit suits every model. Loads one
model after the other through transformers and PEFT: memory of one model in float32, and logits of the compared tokens.
"""

import importlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import FAILED, StageError
from postmill.io.schemas import TOKENS_V1
from postmill.io.table import TableReader
from postmill.stages.merge.config import Merge
from postmill.stages.protocol import Input, Out
from postmill.stages.shared.hf import add_adapters, load_model, load_tokenizer, need, vocab_size

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


def check_parity(
    cfg: Merge, base: Path, adapters: dict[Path, float], rows: list[Input], out: Out
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compare, write the report into the artifact, and return it with the versions that made it.

    adapters: path -> scale, in order.
    Raises ConfigError (2) without torch, transformers or PEFT; StageError (1) over the tolerance.
    """
    versions = need("torch", "transformers", "peft", remedy="pip install 'postmill[train]', or pass --parity off")
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(out.threads)
    ids, source = (_stored_rows(rows[0]), "rows") if rows else (_prompt_ids(out.dir), "prompts")
    ids = _first_tokens(ids, cfg.parity_tokens)
    model = load_model(base, "float32")
    vocab = vocab_size(out.dir)
    if vocab is not None and vocab != vocab_size(base):
        model.resize_token_embeddings(vocab, mean_resizing=False)
    expected = _logits(add_adapters(model, adapters), ids)
    del model
    found = _logits(load_model(out.dir, "float32"), ids)
    report = _compare(expected, found) | {"source": source, "tolerance": cfg.tolerance}
    (out.dir / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if not report["relative_difference"] <= cfg.tolerance:
        raise StageError(
            f"parity: logits differ by {report['relative_difference']} of their deviation on {report['num_tokens']}"
            f" tokens, more than --tolerance {cfg.tolerance}; nothing was committed",
            FAILED,
        )
    return report, versions


def _prompt_ids(model: Path) -> list[list[int]]:
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


def _stored_rows(rows: Input) -> list[list[int]]:
    assert rows.artifact is not None
    table = TableReader(rows.artifact.file("tokens.arrow"), TOKENS_V1)
    return [ids for ids in table.batch(0)["input_ids"].slice(0, 64).to_pylist() if ids]


def _first_tokens(rows: list[list[int]], budget: int) -> list[list[int]]:
    """Rows cut alike so that together they have at most `budget` tokens."""
    rows = rows[:budget]
    share = max(1, budget // max(1, len(rows)))
    return [row[:share] for row in rows]


def _logits(model: Any, rows: list[list[int]]) -> list[np.ndarray[Any, Any]]:
    """Logits of every position, float32, one array a row."""
    torch: Any = importlib.import_module("torch")
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row])).logits[0].float().numpy() for row in rows]


def _compare(expected: list[np.ndarray[Any, Any]], found: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Differences, to three digits: more would only repeat the rounding of one machine."""
    left, right = (np.concatenate([np.atleast_2d(a) for a in side]) for side in (expected, found))
    difference = np.abs(left - right)
    return {
        "num_tokens": len(left),
        "max_difference": _rounded(difference.max()),
        "mean_difference": _rounded(difference.mean(dtype=np.float64)),
        "relative_difference": _rounded(difference.mean(dtype=np.float64) / max(left.std(axis=-1).mean(), 1e-9)),
        "top1_agreement": _rounded((left.argmax(-1) == right.argmax(-1)).mean()),
    }


def _rounded(value: Any) -> float:
    return float(f"{float(value):.3g}")
