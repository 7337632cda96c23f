"""Weighing again equals tokenizing anew, on real conversations, for every strategy, base, rule set and chain."""

import functools
import itertools
import json
from pathlib import Path

import assets
import pyarrow as pa
import pytest

from postmill._native import ChatEncoder
from postmill.io.schemas import TOKENS_V1
from postmill.stages.tokenize.config import Tokenize
from postmill.stages.tokenize.run import make_encoder
from postmill.stages.tokenize.sources import open_sources
from postmill.stages.tokenize.tokenizer import choose_templates, load_tokenizer

ROWS = 60
BASES = ("default", "last_round", "all")
STRATEGIES = (
    "ignore_empty_think", "ignore_think_prefix", "react", "hermes", "qwen", "agentflan", "alpha_umi", "swift-table-14",
)  # fmt: skip
SPECS = [
    *BASES,
    *("+".join(pair) for pair in itertools.product(BASES, STRATEGIES)),
    "last_round+hermes+ignore_empty_think",
    "default+react+regex.json",
    "last_round+literal.json+ignore_empty_think",
]
RULES = [
    ("regex.json", '{"[aeiou]+": [-0.5]}'),
    ("literal.json", '{"Action:": [3, 0.25], "the ": [0.5, 2]}'),
]
FILES = ("glaive_toolcall_en_demo.json", "reason_tool_use_demo_50.jsonl", "alpaca_zh_demo.json", "dpo_en_demo.json")


@pytest.fixture(scope="module")
def model() -> Path:
    found = assets.qwen3_tokenizer()
    if found is None:
        pytest.skip("the Qwen3 tokenizer is not to be had here")
    return found


@functools.cache  # a tokenizer is compiled for each
def encoder(folder: Path, spec: str, rules: str) -> ChatEncoder:
    model = load_tokenizer(folder)
    cfg = Tokenize(loss_scale=spec, loss_rules="spans" if rules == "spans" else "ms-swift")
    return make_encoder(cfg, model, choose_templates(model, "", None), RULES)


def rows_of(file: str) -> bytes:
    folder = assets.llamafactory_data()
    if folder is None or not (folder / file).is_file():
        pytest.skip(f"{file} is not to be had here")
    chunks = b"".join(chunk.data for chunk in open_sources([f"{folder / file}"]).chunks())
    return b"".join(line + b"\n" for line in chunks.splitlines()[:ROWS])


def encode(made: ChatEncoder, data: bytes) -> tuple[pa.RecordBatch, int]:
    rows, _, counts = made.encode_chunk(data, "x", 0, 1, 0)
    return pa.record_batch(rows), counts["encode_calls"]


def still_trained(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Rows that tokenizing would keep: with something to train on, pairs as one."""
    rows = list(zip(batch["pair_id"].to_pylist(), batch["trained_tokens"].to_pylist(), strict=True))
    lost = {pair for pair, trained in rows if pair and not trained}
    return batch.filter(pa.array([trained > 0 and pair not in lost for pair, trained in rows]))


@pytest.mark.parametrize("file", FILES)
def test_weighing_again_equals_tokenizing_anew(model: Path, file: str) -> None:
    data = rows_of(file)
    plain, calls = encode(encoder(model, "default", "spans"), data)
    assert calls >= plain.num_rows >= 30
    seen = set()
    for spec, rules in itertools.product(SPECS, ("spans", "ms-swift")):
        made = encoder(model, spec, rules)
        fresh, _ = encode(made, data)
        again = still_trained(pa.record_batch(made.reweight(plain)))
        assert again.schema.equals(TOKENS_V1) and again.equals(fresh), (spec, rules)
        seen.add(json.dumps(fresh["spans"].to_pylist()))
    assert len(seen) >= 3, "the specifications weigh these rows in different ways"
