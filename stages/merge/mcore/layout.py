"""Which tensor of Megatron-Core holds which tensors of a Hugging Face model, and how they lie in it.

Names are those of Megatron's GPT model with Transformer Engine's layers, which its local layers are saved under
too; all layers are one tensor with the layer as first dimension, all experts with the expert as second. Queries, keys
and values are one matrix, a key head after its query heads, group by group; gate and up are one, gate first. Letters:
K key heads, N query heads of one, D head size, H inputs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe")


class Shape(NamedTuple):
    """What the config says of a model's size."""

    num_layers: int
    heads: int
    keys: int
    head_size: int
    vocab: int
    experts: int
    tied: bool
    head_norms: bool
    """Whether queries and keys are normalised."""


def read_shape(config: dict[str, Any], place: str) -> Shape:
    """From a `config.json`. Raises ConfigError (2) for families and options that have no such layout here."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"{place}: {family} models have no Megatron layout here; {', '.join(FAMILIES)} do", USAGE)
    is_moe = family == "qwen3_moe"
    if is_moe and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        raise ConfigError(f"{place}: some layers have no experts, which Megatron keeps apart; not converted", USAGE)
    if config.get("quantization_config"):
        raise ConfigError(f"{place}: its weights are quantized; give the model before it was quantized", USAGE)
    heads = int(config["num_attention_heads"])
    return Shape(
        int(config["num_hidden_layers"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or config["hidden_size"] // heads),
        int(config["vocab_size"]),
        int(config.get("num_experts") or config.get("num_local_experts") or 0) if is_moe else 0,
        bool(config.get("tie_word_embeddings")),
        family in ("qwen3", "qwen3_moe"),
    )


class Piece(NamedTuple):
    """One block of a tensor of Megatron's: `name`, at the leading indices `at` of `counts`, made of `parts`."""

    name: str
    counts: tuple[int, ...]
    at: tuple[int, ...]
    parts: tuple[str, ...]
    how: str = "same"
    """same, qkv, gate_up, or vocab: rows beyond the vocabulary are padding."""

    @property
    def may_lack(self) -> bool:
        """Whether a model may be without it."""
        return self.name.endswith(".bias")

    @property
    def also(self) -> str:
        """Another name that some layers of Megatron ask for: of a mixture, its local ones; "" for none."""
        norm, as_dense = "pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight"
        return self.name.replace(norm, as_dense) if self.name.endswith(norm) else ""

    @property
    def names(self) -> list[tuple[str, tuple[int, ...]]]:
        """What it may be called, each with the place in a tensor of that name: where layers are one, and apart."""
        known = [name for name in (self.name, self.also) if name]
        apart = [name.replace("layers.", f"layers.{self.at[0]}.", 1) for name in known if self.at]
        return [(name, self.at) for name in known] + [(name, self.at[1:]) for name in apart]


_LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.linear_proj.bias": "self_attn.o_proj.bias",
}
_HEAD_NORMS = {f"self_attention.{x}_layernorm.weight": f"self_attn.{x}_norm.weight" for x in "qk"}
_DENSE = {
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_SPARSE = {"pre_mlp_layernorm.weight": "post_attention_layernorm.weight", "mlp.router.weight": "mlp.gate.weight"}


def pieces(shape: Shape) -> Iterator[Piece]:
    """All that a model of this shape may have, a tensor of Megatron's after the other."""
    yield Piece("embedding.word_embeddings.weight", (), (), ("model.embed_tokens.weight",), "vocab")
    yield Piece("decoder.final_layernorm.weight", (), (), ("model.norm.weight",))
    if not shape.tied:
        yield Piece("output_layer.weight", (), (), ("lm_head.weight",), "vocab")
    layers = (shape.num_layers,)
    plain = _LAYER | (_SPARSE if shape.experts else _DENSE) | (_HEAD_NORMS if shape.head_norms else {})
    for name, part in plain.items():
        for n in range(shape.num_layers):
            yield Piece(f"decoder.layers.{name}", layers, (n,), (f"model.layers.{n}.{part}",))
    for kind in ("weight", "bias"):
        for n in range(shape.num_layers):
            parts = tuple(f"model.layers.{n}.self_attn.{letter}_proj.{kind}" for letter in "qkv")
            yield Piece(f"decoder.layers.self_attention.linear_qkv.{kind}", layers, (n,), parts, "qkv")
    for n in range(0 if shape.experts else shape.num_layers):
        parts = tuple(f"model.layers.{n}.mlp.{half}_proj.weight" for half in ("gate", "up"))
        yield Piece("decoder.layers.mlp.linear_fc1.weight", layers, (n,), parts, "gate_up")
    counts, stem = (shape.num_layers, shape.experts), "decoder.layers.mlp.experts.experts.linear_fc"
    for number, halves in ((1, ("gate", "up")), (2, ("down",))):
        for n in range(shape.num_layers):
            for e in range(shape.experts):
                parts = tuple(f"model.layers.{n}.mlp.experts.{e}.{half}_proj.weight" for half in halves)
                yield Piece(f"{stem}{number}.weight", counts, (n, e), parts, "gate_up" if number == 1 else "same")


def extra_states(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Objects that Megatron asks a checkpoint for besides, as name, counts and place; they hold nothing."""
    layers = [f"self_attention.{name}" for name in ("linear_qkv", "linear_proj", "core_attention")]
    layers += [] if shape.experts else ["mlp.linear_fc1", "mlp.linear_fc2"]
    for n in range(shape.num_layers):
        for name in layers:
            yield f"decoder.layers.{name}._extra_state", (shape.num_layers,), (n,)
        for e in range(shape.experts):
            for number in (1, 2):
                name = f"decoder.layers.mlp.experts.experts.linear_fc{number}._extra_state"
                yield name, (shape.num_layers, shape.experts), (n, e)


def join(piece: Piece, tensors: list[Tensor], shape: Shape) -> Tensor:
    """The block of Megatron's tensor, from those of Hugging Face."""
    if piece.how == "qkv":
        grouped = [t.reshape(shape.keys, -1, *t.shape[1:]) for t in tensors]  # K, N * D or D, H
        return torch.cat(grouped, 1).flatten(0, 1)
    return torch.cat(tensors) if piece.how == "gate_up" else tensors[0]


def split(piece: Piece, tensor: Tensor, shape: Shape) -> list[Tensor]:
    """The other way round."""
    if piece.how == "qkv":
        per_key = shape.heads // shape.keys * shape.head_size
        grouped = tensor.reshape(shape.keys, per_key + 2 * shape.head_size, *tensor.shape[1:])
        sizes = [per_key, shape.head_size, shape.head_size]
        return [part.flatten(0, 1) for part in torch.split(grouped, sizes, 1)]
    if piece.how == "gate_up":
        return list(tensor.chunk(2))
    return [tensor[: shape.vocab] if piece.how == "vocab" else tensor]
