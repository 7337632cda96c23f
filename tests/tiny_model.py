"""A Llama of a few thousand parameters, and packed tokens for it, made on the spot."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import token_tables

VOCAB = 61


def write_model(folder: Path, *, tied: bool = True, dtype: str = "float32", seed: int = 0, **config: Any) -> Path:
    """A model folder with random weights, and a tokenizer.json that names id 2 as special."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "initializer_range": 0.2,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | config))).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"id": 2, "content": "<e>", "special": True}]}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def make_rows(num_rows: int, seed: int = 0, longest: int = 24) -> list[dict[str, Any]]:
    """Random rows with one weighted span, closed by the trained token 2; two channels."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_rows):
        length = int(rng.integers(6, longest))
        ids = [*rng.integers(3, VOCAB, length - 1).tolist(), 2]
        start = int(rng.integers(1, length - 3))
        middle = int(rng.integers(start + 1, length - 1))
        spans = [(start, middle, float(rng.choice([0.5, 2.0, 3.0]))), (middle, length, 1.0)]
        turn = {
            "start": 0,
            "end": length,
            "generated_start": start,
            "generated_end": length,
            "closing": length - 1,
            "role": 2,
            "message": 1,
            "loss": -1,
            "loss_scale": None,
        }
        rows.append(token_tables.row(ids, spans, turns=[turn], channel=f"c{number % 2}"))
    return rows


def write_packed(folder: Path, model: Path, rows: list[dict[str, Any]], row_tokens: int = 48, **options: Any) -> Path:
    """A tokens artifact for `model` and what pack makes of it, at `folder`."""
    from postmill.io.model_folder import tokenizer_digest
    from postmill.stages.pack.config import STAGE, Pack
    from postmill.stages.runner import Options, run_stage

    tokens = folder.parent / f"{folder.name}-tokens"
    token_tables.write_tokens(tokens, token_tables.to_batches(rows), {"tokenizer": tokenizer_digest(model)})
    run_stage(STAGE, Pack(row_tokens=row_tokens, **options), {"tokens": [str(tokens)]}, folder, Options())
    return folder


def start(
    tuner: Any, base: Path, attention: str = "sdpa", *, liger: bool = False, checkpoint: Path | None = None
) -> Any:
    """The model in `base` as `tuner` makes it for training, in float32."""
    import torch

    from postmill.stages.options import make
    from postmill.stages.train.config import Train
    from postmill.stages.train.model import loader
    from postmill.stages.train.tuners.interface import Start

    cfg = make(Train, liger=liger)
    return tuner.build().start(Start(base, loader(attention, cfg), torch.float32, cfg.seed, checkpoint))
