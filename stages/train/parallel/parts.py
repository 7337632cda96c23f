"""Tensors that lie on several ranks: what this one holds, who holds the rest, and how a whole one is cut alike."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def move(module: nn.Module, device: torch.device) -> None:
    """To `device`, but for what has no memory."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_meta else tensor.to(device)

    module._apply(moved)  # type: ignore[no-untyped-call]


def of_rank(tensor: Tensor) -> Tensor:
    """The part that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_by(tensor: Tensor) -> Iterator[Any]:
    """The groups whose ranks hold other parts of `tensor`."""
    if isinstance(tensor, DTensor):
        for at, placement in enumerate(tensor.placements):
            assert not placement.is_partial(), "gradients have met by now"
            if hasattr(placement, "dim") and tensor.device_mesh.size(at) > 1:
                yield tensor.device_mesh.get_group(at)


def cut_like(tensor: Tensor, parameter: DTensor, device: torch.device) -> DTensor:
    """The part of a whole `tensor` that this rank holds when it lies as `parameter` does, on `device`."""
    mesh, part = parameter.device_mesh, tensor
    # shards are cut from what tensor parallelism left, so the last dimension of the mesh cuts first
    for at in reversed(range(mesh.ndim)):
        dim = getattr(parameter.placements[at], "dim", None)
        if dim is not None:
            part = _chunk(part, mesh.size(at), mesh.get_local_rank(at), dim)
    return DTensor.from_local(
        part.to(device, copy=True).contiguous(),
        mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _chunk(tensor: Tensor, num_chunks: int, index: int, dim: int) -> Tensor:
    """Chunk `index`, as torch deals them; it may be empty."""
    chunks = tensor.chunk(num_chunks, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)


def lay_alike(parameter: nn.Parameter) -> None:
    """Cut the gradient as the parameter is: an embedding's comes whole, a head's in slices."""
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and isinstance(parameter, DTensor):
        parameter.grad = gradient.redistribute(parameter.device_mesh, parameter.placements)
