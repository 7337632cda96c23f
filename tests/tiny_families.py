"""Models of many families with a few thousand random weights, in transformers' own classes."""

import tiny_model
import torch
import transformers

from postmill.stages.shared import attention
from postmill.stages.shared.forward import Forward

COMMON = {
    "vocab_size": tiny_model.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LEAKY = {"lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False})}
FAMILIES = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "mistral_window": ("Mistral", {"sliding_window": 5, "head_dim": 8}),
    "gemma2": ("Gemma2", {"sliding_window": 5, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {"sliding_window": 5, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "granite": ("Granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5}),
    "phi3": ("Phi3", {}),
    "gpt_bias_head": ("Phi", {}),
}


def build(family="llama", dtype=torch.float64, implementation="sdpa"):
    """A causal language model with random weights."""
    name, extra = (FAMILIES | LEAKY)[family]
    config_name = "Gemma3Text" if name == "Gemma3" else name
    torch.manual_seed(1)
    attention.choose("per-row", torch.device("cpu"), torch.float32)
    config = getattr(transformers, f"{config_name}Config")(**(COMMON | extra))
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():  # biases and norms too, so that none can hide
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def forward_of(model, dtype=torch.float64, **options):
    return Forward(model, compute_dtype=dtype, backend="reference", **options)
