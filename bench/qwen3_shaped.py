"""Random models with the tensors of a Qwen3-0.6B, written without torch: what merging is timed on."""

import json
from pathlib import Path

import numpy as np

from postmill.io.safetensors_file import INDEX, SafetensorsWriter, shard_index

FULL = {"hidden": 1024, "inner": 3072, "layers": 28, "heads": 16, "kv": 8, "head_dim": 128, "vocab": 151_936}
TOY = {"hidden": 64, "inner": 96, "layers": 2, "heads": 4, "kv": 2, "head_dim": 16, "vocab": 500}
SHARDS = 4


def linears(size: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Shape of every linear layer of a Qwen3-shaped model."""
    hidden, inner, head = size["hidden"], size["inner"], size["head_dim"]
    per_layer = {
        "self_attn.q_proj": (size["heads"] * head, hidden),
        "self_attn.k_proj": (size["kv"] * head, hidden),
        "self_attn.v_proj": (size["kv"] * head, hidden),
        "self_attn.o_proj": (hidden, size["heads"] * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {f"model.layers.{n}.{name}": shape for n in range(size["layers"]) for name, shape in per_layer.items()}


def make_base(path: Path, size: dict[str, int]) -> None:
    """Random bfloat16 weights in four shards."""
    path.mkdir()
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocab"], size["hidden"])}
    shapes |= {f"{name}.weight": shape for name, shape in linears(size).items()}
    for n in range(size["layers"]):
        shapes |= {f"model.layers.{n}.self_attn.{x}_norm.weight": (size["head_dim"],) for x in "qk"}
        shapes |= {f"model.layers.{n}.{x}_layernorm.weight": (size["hidden"],) for x in ("input", "post_attention")}
    shapes["model.norm.weight"] = (size["hidden"],)
    names, rng, written = list(shapes), np.random.default_rng(0), {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        mine = names[shard * len(names) // SHARDS : (shard + 1) * len(names) // SHARDS]
        with SafetensorsWriter(path / file, {n: ("BF16", shapes[n]) for n in mine}, {"format": "pt"}) as writer:
            for name in mine:
                values = rng.standard_normal(shapes[name], np.float32) * 0.02 + (1 if len(shapes[name]) == 1 else 0)
                writer.write(name, memoryview((values.view(np.uint32) >> 16).astype(np.uint16)).cast("B"))
        written[file] = [(name, 2 * int(np.prod(shapes[name]))) for name in mine]
    (path / INDEX).write_bytes(shard_index(written))
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": size["hidden"],
        "intermediate_size": size["inner"], "num_hidden_layers": size["layers"], "vocab_size": size["vocab"],
        "num_attention_heads": size["heads"], "num_key_value_heads": size["kv"], "head_dim": size["head_dim"],
        "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
