"""What a checkpoint of Megatron computes, in plain torch, from its own tensors as Megatron's layers read them.

The conversion is not used here, so a tensor that it laid out wrongly shows in the logits. One layer is in memory at a
time. Rotary angles are those of the Hugging Face model, for they come from its config in either case. Shape letters: T
tokens, H hidden size, K key heads, N query heads of one, D head size, E experts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from postmill.stages.merge.mcore.layout import Shape

Read = Callable[[str, tuple[int, ...]], Tensor | None]
"""A tensor of the checkpoint in float32, at the indices of a layer and an expert; None where there is none."""


def mcore_logits(read: Read, shape: Shape, config: Any, rotary: Any, rows: list[list[int]]) -> list[Tensor]:
    """Logits of each row, float32, [T, V]. config: of the Hugging Face model; rotary: its module for angles."""
    embedding = _there(read("embedding.word_embeddings.weight", ()))
    hidden = [embedding[torch.tensor(row)] for row in rows]
    angles = [rotary(x_TH[None], torch.arange(len(x_TH))[None]) for x_TH in hidden]
    for layer in range(shape.num_layers):

        def of_layer(name: str, *at: int, layer: int = layer) -> Tensor | None:
            return read(f"decoder.layers.{name}", (layer, *at))

        attend, feed = _attention(of_layer, shape, config), _feed_forward(of_layer, shape, config)
        hidden = [feed(attend(x_TH, *turn)) for x_TH, turn in zip(hidden, angles, strict=True)]
    norm = _there(read("decoder.final_layernorm.weight", ()))
    head = embedding if shape.tied else _there(read("output_layer.weight", ()))
    return [F.linear(_norm(x_TH, norm, config), head[: shape.vocab]) for x_TH in hidden]


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _norm(x: Tensor, weight: Tensor, config: Any) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, config.rms_norm_eps)


def _attention(read: Callable[..., Tensor | None], shape: Shape, config: Any) -> Callable[..., Tensor]:
    names = ("linear_qkv.layer_norm_weight", "linear_qkv.weight", "linear_proj.weight")
    before, fused, out = (_there(read(f"self_attention.{name}")) for name in names)
    biases = [read(f"self_attention.linear_{name}.bias") for name in ("qkv", "proj")]
    norms = [read(f"self_attention.{x}_layernorm.weight") for x in "qk"] if shape.head_norms else [None, None]

    def turned(x_nTD: Tensor, cos_1TD: Tensor, sin_1TD: Tensor) -> Tensor:
        first, second = x_nTD.chunk(2, -1)
        return x_nTD * cos_1TD + torch.cat([-second, first], -1) * sin_1TD

    def attend(x_TH: Tensor, cos_1TD: Tensor, sin_1TD: Tensor) -> Tensor:
        mixed = F.linear(_norm(x_TH, before, config), fused, biases[0])
        groups = mixed.view(len(x_TH), shape.keys, shape.heads // shape.keys + 2, shape.head_size)
        q, k, v = groups[:, :, :-2].flatten(1, 2), groups[:, :, -2], groups[:, :, -1]
        q, k = (x if w is None else _norm(x, w, config) for x, w in zip((q, k), norms, strict=True))
        q, k = (turned(x.transpose(0, 1), cos_1TD, sin_1TD) for x in (q, k))
        attended = F.scaled_dot_product_attention(
            q[None], k[None], v.transpose(0, 1)[None], is_causal=True, enable_gqa=shape.heads != shape.keys
        )
        return x_TH + F.linear(attended[0].transpose(0, 1).flatten(1), out, biases[1])

    return attend


def _feed_forward(read: Callable[..., Tensor | None], shape: Shape, config: Any) -> Callable[[Tensor], Tensor]:
    def gated(x_TH: Tensor, first: Tensor, second: Tensor) -> Tensor:
        gate, up = F.linear(x_TH, first).chunk(2, -1)
        return F.linear(F.silu(gate) * up, second)

    def dense(x_TH: Tensor) -> Tensor:
        norm, first, second = (
            _there(read(f"mlp.linear_fc{name}")) for name in ("1.layer_norm_weight", "1.weight", "2.weight")
        )
        return x_TH + gated(_norm(x_TH, norm, config), first, second)

    def sparse(x_TH: Tensor) -> Tensor:
        norm, router = _there(read("pre_mlp_layernorm.weight")), _there(read("mlp.router.weight"))
        y_TH = _norm(x_TH, norm, config)
        share_Tk, chosen_Tk = F.linear(y_TH, router).softmax(-1).topk(config.num_experts_per_tok, -1)
        if config.norm_topk_prob:
            share_Tk = share_Tk / share_Tk.sum(-1, keepdim=True)
        total = torch.zeros_like(y_TH)
        for expert in sorted(set(chosen_Tk.flatten().tolist())):
            tokens, place = (chosen_Tk == expert).nonzero(as_tuple=True)
            first, second = (_there(read(f"mlp.experts.experts.linear_fc{n}.weight", expert)) for n in (1, 2))
            total.index_add_(0, tokens, gated(y_TH[tokens], first, second) * share_Tk[tokens, place, None])
        return x_TH + total

    return sparse if shape.experts else dense
