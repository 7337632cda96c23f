"""What llama.cpp calls a model's parts: names of tensors, and the numbers of its configuration.

Names and keys are those of llama.cpp's own converter (`convert_hf_to_gguf.py`) for the architectures below; others are
refused. Two things are stored otherwise than in the model folder: rows of query and key of `llama` are in the order
that its rotation wants (pairs next to each other), and experts are one tensor for a layer.
"""

import math
import re
from typing import Any, NamedTuple

from postmill.io.errors import USAGE, ConfigError
from postmill.io.gguf_file import Value
from postmill.io.safetensors_file import Weights


class Source(NamedTuple):
    """Where a tensor of the file comes from. `names`: of the model's tensors; several are stacked.

    heads: where it is not 0, rows are taken in pairs within each of so many heads.
    """

    names: list[str]
    shape: tuple[int, ...]
    heads: int = 0


_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_ARCHITECTURES |= {"qwen3_moe": "qwen3moe"}
"""`model_type` -> what llama.cpp calls it."""

_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
}
_EXPERT_PARTS = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")


def architecture_of(config: dict[str, Any]) -> str:
    """llama.cpp's name for the model. Raises ConfigError (2) for one whose file would not mean the same."""
    kind = config.get("model_type", "")
    if kind not in _ARCHITECTURES:
        raise ConfigError(
            f"model_type {kind}: is not written as GGUF here, only {', '.join(_ARCHITECTURES)}; use llama.cpp's"
            " convert_hf_to_gguf.py",
            USAGE,
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act {config['hidden_act']}: llama.cpp computes {kind} with silu", USAGE)
    if "sliding_attention" in (config.get("layer_types") or []):
        raise ConfigError(f"{kind} with sliding attention: llama.cpp would attend to everything", USAGE)
    return _ARCHITECTURES[kind]


def find_sources(architecture: str, config: dict[str, Any], weights: Weights) -> dict[str, Source]:
    """Every tensor of the file, in order. Raises ConfigError (2) for a tensor of the model that has no name there."""
    sources: dict[str, Source] = {}
    experts: dict[str, dict[int, str]] = {}
    for name in _in_order(weights):
        if (name == "lm_head.weight" and config.get("tie_word_embeddings")) or name.endswith(".rotary_emb.inv_freq"):
            continue
        module, _, leaf = name.rpartition(".")
        shape = weights.entry(name).shape
        if module in _ENDS:
            sources[f"{_ENDS[module]}.{leaf}"] = Source([name], shape)
            continue
        match = _LAYER.fullmatch(name)
        layer, part = (match[1], match[2]) if match else ("", "")
        expert = _EXPERT.fullmatch(part)
        if part in _PARTS:
            heads = _heads(part, config) if architecture == "llama" else 0
            sources[f"blk.{layer}.{_PARTS[part]}.{leaf}"] = Source([name], shape, heads)
        elif expert and expert[2] in _EXPERT_PARTS:
            target = f"blk.{layer}.{_EXPERT_PARTS[expert[2]]}.{leaf}"
            of = experts.setdefault(target, {})
            of[int(expert[1])] = name
            sources[target] = Source([], (len(of), *shape))
        else:
            raise ConfigError(f"{name}: llama.cpp's {architecture} has no such tensor; merge adapters first", USAGE)
    for target, of in experts.items():
        sources[target] = sources[target]._replace(names=[of[number] for number in sorted(of)])
    return sources


def _in_order(weights: Weights) -> list[str]:
    """Names with layers by their numbers, as they are computed."""
    return sorted(weights.where, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(8), name))


def _heads(part: str, config: dict[str, Any]) -> int:
    if part == "self_attn.q_proj":
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if part == "self_attn.k_proj" else 0


def describe(architecture: str, config: dict[str, Any]) -> dict[str, Value]:
    """The model's numbers by key."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    said: dict[str, Value] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "vocab_size": config["vocab_size"],
    }
    if architecture == "llama":
        said["rope.dimension_count"] = head_dim
    num_experts = config.get("num_local_experts") or config.get("num_experts")
    if num_experts:
        said |= {"expert_count": int(num_experts), "expert_used_count": int(config["num_experts_per_tok"])}
        if "moe_intermediate_size" in config:
            said["expert_feed_forward_length"] = config["moe_intermediate_size"]
    said |= _describe_rope(config.get("rope_parameters") or {})
    return {f"{architecture}.{key}": value for key, value in said.items()}


def _describe_rope(rope: dict[str, Any]) -> dict[str, Value]:
    kind = rope.get("rope_type", "default")
    said: dict[str, Value] = {"rope.freq_base": float(rope.get("rope_theta", 10000.0))}
    if kind in ("linear", "yarn"):
        said |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        said["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
        for key, name in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            if rope.get(key) is not None:
                said[f"rope.scaling.{name}"] = float(rope[key])
        if rope.get("attention_factor") is not None:
            said["rope.scaling.yarn_attn_factor"] = float(rope["attention_factor"])
    elif kind not in ("default", "linear", "llama3"):
        raise ConfigError(f"rope_type {kind}: is not written as GGUF here, only default, linear, yarn, llama3", USAGE)
    return said


def rope_factors(config: dict[str, Any]) -> list[float]:
    """What each frequency is divided by, where rotation is scaled as Llama 3's: the tensor `rope_freqs.weight`.

    Source: `_compute_llama3_parameters` of transformers. Empty for all other models.
    """
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") != "llama3":
        return []
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    factor, original = float(rope["factor"]), rope["original_max_position_embeddings"]
    slow, fast = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factors = []
    for index in range(0, dim, 2):
        length = 2 * math.pi * rope["rope_theta"] ** (index / dim)
        share = min(max((original / length - slow) / (fast - slow), 0.0), 1.0)
        factors.append(1 / ((1 - share) / factor + share))
    return factors
