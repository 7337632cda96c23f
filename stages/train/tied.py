"""One gradient for a weight that is both embedding and head.

Autograd makes the embedding's gradient as a dense (V, H) tensor of zeros but for the rows of the batch, and adds it to
the head's, which is dense anyway. For a vocabulary of 151,936 that is as large as all trained weights of a small model,
and the slowest operation of its body. Here the rows are added where the head's gradient lies.
"""

from typing import Any

import torch
from torch import Tensor, nn


def share_gradient(model: Any) -> bool:
    """Add the embedding's gradient to its weight's `.grad` row by row, where the model's head has the same weight.

    For one process: wrappers that send gradients off as they come (DDP, FSDP) would miss the rows. Returns whether it
    applies: an embedding that is not plain, or has a weight of its own, is left alone.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or head is None or head.weight is not embedding.weight:
        return False
    if embedding.max_norm is not None or embedding.scale_grad_by_freq or not embedding.weight.requires_grad:
        return False
    embedding.register_forward_hook(_replace)
    return True


def _replace(embedding: nn.Embedding, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if not output.requires_grad:
        return output
    # autograd calls backward only where an input wants a gradient
    wanted = torch.empty(0, requires_grad=True)
    rows: Tensor = _Rows.apply(output.detach(), inputs[0], embedding, wanted)  # type: ignore[no-untyped-call]
    return rows


class _Rows(torch.autograd.Function):
    """Identity forward; backward adds rows to the weight's gradient, before or after the head's came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ids: Tensor, embedding: nn.Embedding, wanted: Tensor) -> Tensor:
        ctx.ids, ctx.embedding = ids, embedding
        return rows.view_as(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:
        weight, padding = ctx.embedding.weight, ctx.embedding.padding_idx
        ids, rows = ctx.ids.flatten(), grad.flatten(0, -2)
        if padding is not None:
            ids, rows = ids[ids != padding], rows[ids != padding]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids, rows.to(weight.dtype))
        return None, None, None, None
