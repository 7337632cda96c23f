"""Gradients that meet: sums over the ranks of a group, several tensors in one message."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from postmill.stages.train.parallel.parts import of_rank

_BUCKET_BYTES = 64 << 20


def sum_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum gradients over `group`, several in one message. One that a rank lacks is zero there."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[Tensor] = []
    for parameter in parameters:
        assert parameter.grad is not None
        gradient = of_rank(parameter.grad)
        if bucket and (bucket[0].dtype != gradient.dtype or sum(g.nbytes for g in bucket) > _BUCKET_BYTES):
            _all_reduce(bucket, group)
            bucket = []
        bucket.append(gradient)
    if bucket:
        _all_reduce(bucket, group)


def _all_reduce(tensors: list[Tensor], group: dist.ProcessGroup) -> None:
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, group=group)
    for t, piece in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        t.copy_(piece.view_as(t))
