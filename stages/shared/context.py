"""Context parallelism: the tokens of a batch are dealt to the ranks of a group, in slices of equal length.

Rows may lie across slices: a slice is cut anywhere. Only attention looks beyond it, in one of two ways:

    heads   each rank gets all tokens for its share of the heads, and runs the kernel it would run alone (DeepSpeed
            Ulysses, <https://arxiv.org/abs/2309.14509>); fewer key heads than ranks are sent several times
    keys    where heads do not divide: each rank gets all keys and values, and attends with the queries it has

Numbers of tokens are gathered afterwards, so that a loss sees the whole batch on every rank; each rank then sends back
the gradient of its own slice only. Tensor letters: N heads, K key/value heads, T tokens of the batch, S tokens of the
slice, D head size.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.batch import Batch

NAME = "postmill_context"


class Context:
    """The ranks of `group` share each batch."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def attach(self, model: Any) -> None:
        """Let the attention of a transformers model look beyond the slice, through the kernel it has now."""
        from transformers import AttentionInterface
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        inner = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
        AttentionInterface.register(NAME, self._attention(inner))
        model.set_attn_implementation(NAME)

    def slice(self, values: Tensor, dim: int = 0, pad: float = 0) -> Tensor:
        """This rank's slice of what all tokens have; `pad` fills up to a multiple of the ranks."""
        length = values.shape[dim]
        short = -length % self.size
        if short:
            filling = list(values.shape)
            filling[dim] = short
            values = torch.cat([values, values.new_full(filling, pad)], dim)
        return values.chunk(self.size, dim)[self.rank]

    def part(self, batch: Batch) -> Batch:
        """The slice of `batch` that the model reads. Tokens that fill it up are a row of their own; columns stay."""
        num_tokens = batch.input_ids_1T.shape[1]
        short = -num_tokens % self.size
        return batch._replace(
            input_ids_1T=self.slice(batch.input_ids_1T, 1),
            position_ids_1T=self.slice(batch.position_ids_1T, 1),
            targets_T=self.slice(batch.targets_T, pad=-1),
            mask_T=self.slice(batch.mask_T),
            weights_T=self.slice(batch.weights_T),
            row_starts=(*batch.row_starts, num_tokens + short) if short else batch.row_starts,
        )

    def gather(self, values_S: Tensor, num_tokens: int) -> Tensor:
        """What all `num_tokens` have, from each rank's slice, on every rank. Differentiable in its own slice."""
        gathered: Tensor = _Gather.apply(values_S, self._group)  # type: ignore[no-untyped-call]
        return gathered[:num_tokens]

    def total(self, loss: Tensor) -> Tensor:
        """The sum over slices; its gradient is that of the own term."""
        summed: Tensor = _Sum.apply(loss, self._group)  # type: ignore[no-untyped-call]
        return summed

    def shared(self, hidden_TH: Tensor) -> Tensor:
        """What goes into a head that all ranks compute alike; `counted` takes what comes out.

        Between the two a gradient is one part of `size`: weights there have the same one on every rank, which are
        summed afterwards. Before, it is whole again.
        """
        scaled: Tensor = _ScaleGradient.apply(hidden_TH, float(self.size))  # type: ignore[no-untyped-call]
        return scaled

    def counted(self, values: Tensor) -> Tensor:
        """See `shared`."""
        scaled: Tensor = _ScaleGradient.apply(values, 1 / self.size)  # type: ignore[no-untyped-call]
        return scaled

    def _attention(self, inner: Callable[..., tuple[Tensor, None]]) -> Callable[..., tuple[Tensor, None]]:
        def attend(  # noqa: PLR0917  # the interface's signature
            module: torch.nn.Module,
            query_1NSD: Tensor,
            key_1KSD: Tensor,
            value_1KSD: Tensor,
            attention_mask: Tensor | None,
            row_starts: tuple[int, ...] = (),
            **options: Any,
        ) -> tuple[Tensor, None]:
            """`inner` over all tokens, for this rank's queries; without `row_starts` every rank has all tokens."""
            if not row_starts:
                return inner(module, query_1NSD, key_1KSD, value_1KSD, attention_mask, **options)
            heads, keys = query_1NSD.shape[1], key_1KSD.shape[1]
            if heads % self.size or (keys % self.size and self.size % keys):
                out = self._over_keys(module, query_1NSD, key_1KSD, value_1KSD, row_starts, **options)
                return out.transpose(1, 2).contiguous(), None
            if keys < self.size:
                key_1KSD, value_1KSD = (t.repeat_interleave(self.size // keys, 1) for t in (key_1KSD, value_1KSD))
            q, k, v = (self._exchange(t, to_heads=True) for t in (query_1NSD, key_1KSD, value_1KSD))
            out_1TND, _ = inner(module, q, k, v, attention_mask, row_starts=row_starts, **options)
            out = self._exchange(out_1TND.transpose(1, 2), to_heads=False)
            return out.transpose(1, 2).contiguous(), None

        return attend

    def _exchange(self, tensor: Tensor, *, to_heads: bool) -> Tensor:
        exchanged: Tensor = _Exchange.apply(tensor, self._group, to_heads)  # type: ignore[no-untyped-call]
        return exchanged

    def _all(self, tensor_1KSD: Tensor) -> Tensor:
        gathered: Tensor = _AllGather.apply(tensor_1KSD, self._group)  # type: ignore[no-untyped-call]
        return gathered

    def _over_keys(  # the interface's order
        self,
        module: torch.nn.Module,
        q_1NSD: Tensor,
        k_1KSD: Tensor,
        v_1KSD: Tensor,
        row_starts: tuple[int, ...],
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> Tensor:
        """[1, N, S, D]: each row's queries of this slice over the keys of the whole row."""
        if softcap is not None:
            raise ConfigError(
                "--cp: attention scores are capped, and its ranks do not divide the heads; lower --cp", USAGE
            )
        causal, num_slice = getattr(module, "is_causal", True), q_1NSD.shape[2]
        begin, stop = self.rank * num_slice, (self.rank + 1) * num_slice
        k_1KTD, v_1KTD = (self._all(t) for t in (k_1KSD, v_1KSD))
        pieces = []
        for start, end in itertools.pairwise(row_starts):
            first, last = max(start, begin), min(end, stop)
            if first >= last:
                continue
            q = q_1NSD[:, :, first - begin : last - begin]
            seen = last if causal else end
            k, v = k_1KTD[:, :, start:seen], v_1KTD[:, :, start:seen]
            distance = torch.arange(first, last, device=q.device)[:, None] - torch.arange(start, seen, device=q.device)
            mask = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
            if sliding_window is not None:
                mask &= distance.abs() < sliding_window
            pieces.append(
                F.scaled_dot_product_attention(
                    q, k, v, mask, dropout_p=dropout, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
                )
            )
        return torch.cat(pieces, 2)


class _Exchange(torch.autograd.Function):
    """[1, N, S, D] of every rank to [1, N / ranks, T, D], and back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup, to_heads: bool) -> Tensor:
        ctx.group, ctx.to_heads = group, to_heads
        split, joined = (1, 2) if to_heads else (2, 1)
        ranks = dist.get_world_size(group)
        sent = torch.stack([piece.contiguous() for piece in tensor.chunk(ranks, split)])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return torch.cat(received.unbind(), joined)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Exchange.apply(gradient, ctx.group, not ctx.to_heads), None, None  # type: ignore[no-untyped-call]


class _AllGather(torch.autograd.Function):
    """[1, K, S, D] of every rank to [1, K, T, D]; the gradient is the sum of what all ranks have for the own part."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        pieces = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(_size(group))]
        dist.all_gather(pieces, tensor.contiguous(), group=group)
        return torch.cat(pieces, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        pieces = [piece.contiguous() for piece in gradient.chunk(_size(ctx.group), 2)]
        own = torch.empty_like(pieces[0])
        dist.reduce_scatter(own, pieces, group=ctx.group)
        return own, None


class _Gather(torch.autograd.Function):
    """Slices end to end. All ranks compute the same loss of them, so each keeps the gradient of its own slice."""

    @staticmethod
    def forward(ctx: Any, values_S: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.length = group, len(values_S)
        pieces = [torch.empty_like(values_S) for _ in range(_size(group))]
        dist.all_gather(pieces, values_S.contiguous(), group=group)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, gradient_T: Tensor) -> tuple[Tensor, None]:
        at = dist.get_rank(ctx.group) * ctx.length
        return gradient_T[at : at + ctx.length], None


class _Sum(torch.autograd.Function):
    """The sum over ranks, each of which sends back the gradient of its own term."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = value.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ScaleGradient(torch.autograd.Function):
    """The same value, and `factor` times its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def _size(group: dist.ProcessGroup) -> int:
    return dist.get_world_size(group)
