"""A model cut over a mesh: by tensor, context and data, in shards or copies, in any mixture.

A rank's loss is the whole loss of its bins, and its gradient a share of it; so gradients are sums over the ranks that
computed other tokens, and norms are sums over the ranks that hold other weights. Nothing is averaged.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from postmill.stages.shared.context import Context
from postmill.stages.shared.forward import Forward
from postmill.stages.train.config import Parallel
from postmill.stages.train.parallel import expert, fsdp, mesh, tensor

_BUCKET_BYTES = 64 << 20


class Meshed:
    """Forms are applied from the inside out: tensor, then context, then shards."""

    def __init__(self, accelerator: Accelerator, form: Parallel) -> None:
        """Raises ConfigError (2) if the ranks cannot be dealt so."""
        ranks = accelerator.num_processes
        found = mesh.grid(form, ranks, ranks_here=int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
        self._meshes = mesh.make(found, accelerator.device.type)
        self._in_shards = form.shard != "none"
        self._accelerator = accelerator
        self._trained: list[nn.Parameter] = []
        self._summed: list[nn.Parameter] = []
        self._dealt: list[nn.Parameter] = []
        self.device = accelerator.device
        self.num_data, self.data_rank = found.data, self._meshes.tokens.get_local_rank("data")
        sizes = {"tp": found.tensor, "cp": found.context, "ep": found.expert}
        shard = form.shard if form.shard != "hsdp" else f"hsdp {found.shards}"
        self.name = ", ".join([shard, *(f"{word} {size}" for word, size in sizes.items() if size > 1)])

    def wrap(self, forward: Forward) -> nn.Module:
        """`forward`, its parameters replaced by this rank's parts."""
        weights, tokens = self._meshes.weights, self._meshes.tokens
        summed: set[int] = set()
        if self._meshes.grid.tensor > 1:
            summed = {id(p) for p in tensor.split(forward.model, weights["tensor"])}
        names = {name for name, parameter in forward.named_parameters() if id(parameter) in summed}
        if self._meshes.experts is not None:
            self._dealt = expert.split(forward.model, self._meshes.experts["expert"], weights["tensor"])
        if self._meshes.grid.context > 1:
            forward.share_tokens(Context(tokens.get_group("context")))
        if self._in_shards:
            around = weights["shard"] if self._meshes.grid.copies == 1 else weights["copies", "shard"]
            fsdp.shard(forward, around, set(self._dealt))
        forward.to(self.device)
        # by name, for sharding makes other parameters of them
        trained = {name: parameter for name, parameter in forward.named_parameters() if parameter.requires_grad}
        dealt = {id(parameter) for parameter in self._dealt}
        self._dealt = [parameter for parameter in trained.values() if id(parameter) in dealt]
        self._trained = [parameter for parameter in trained.values() if id(parameter) not in dealt]
        self._summed = [trained[name] for name in trained if name in names]
        return forward

    def group(self, optimizer: torch.optim.Optimizer) -> None:
        """Tensors of one mesh and kind in each group: torch updates a group in one call."""
        parted = []
        for group in optimizer.param_groups:
            kinds: dict[Any, list[Tensor]] = {}
            for parameter in group["params"]:
                kind = parameter.device_mesh if isinstance(parameter, DTensor) else None
                kinds.setdefault(kind, []).append(parameter)
            parted += [group | {"params": members} for members in kinds.values()]
        optimizer.param_groups[:] = parted

    @contextlib.contextmanager
    def gathering(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Gradients stay where they were made until the last micro-batch."""
        if self._in_shards:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]  # a method that fully_shard added
        yield
        if not last:
            return
        grid = self._meshes.grid
        if grid.tensor > 1:
            _sum_gradients(self._summed, self._meshes.weights.get_group("tensor"))
        if not self._in_shards and grid.copies > 1:
            _sum_gradients(self._trained, self._meshes.weights.get_group("copies"))
        if self._dealt and self._meshes.experts is not None:
            _sum_gradients(self._dealt, self._meshes.experts.get_group("replicas"))
            for parameter in self._dealt if self._in_shards else ():  # they are not averaged as the others are
                assert parameter.grad is not None
                _local(parameter.grad).div_(grid.data * grid.context)

    def backward(self, loss: Tensor) -> None:
        """FSDP averages what we want to be a sum."""
        grid = self._meshes.grid
        around = grid.data * grid.context
        (loss * around if self._in_shards and around > 1 else loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: Iterable[Tensor], norm: float) -> Tensor:
        """The norm is summed over the ranks that hold other parts; what several hold alike counts once."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        squares: dict[tuple[Any, ...], Tensor] = {}
        for gradient in gradients:
            groups = tuple(_cut_by(gradient))
            before = squares.get(groups, torch.zeros((), dtype=torch.float64, device=self.device))
            squares[groups] = before + _local(gradient).double().square().sum()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for groups, square in squares.items():
            for group in groups:
                dist.all_reduce(square, group=group)
            total += square
        found = total.sqrt().float()
        factor = (norm / (found + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            _local(gradient).mul_(factor)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """Ranks of one data rank hold the same number, which counts once."""
        total = tensor.to(self.device, copy=True)
        if self.num_data > 1:
            dist.all_reduce(total, group=self._meshes.tokens.get_group("data"))
        return total

    def gather(self, rows: Tensor, *, pad: int = 0) -> Tensor:
        """In the order of data ranks."""
        if self.num_data == 1:
            return rows
        group = self._meshes.tokens.get_group("data")
        longest = torch.tensor(len(rows), device=self.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX, group=group)
        padded = rows.new_full((int(longest), *rows.shape[1:]), pad)
        padded[: len(rows)] = rows
        pieces = [torch.empty_like(padded) for _ in range(self.num_data)]
        dist.all_gather(pieces, padded, group=group)
        return torch.cat(pieces)

    def whole(self, tensor: Tensor) -> Tensor:
        """Gathered from all ranks."""
        if not isinstance(tensor, DTensor):
            return tensor.detach()
        gathered: Tensor = tensor.full_tensor()
        return gathered.detach()

    def part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """The part that goes with the parameter's; a scalar (the step count) is whole on every rank."""
        if tensor.ndim == 0 or not isinstance(parameter, DTensor):
            return tensor.to(self.device)
        mesh, local = parameter.device_mesh, tensor
        # shards are cut from what tensor parallelism left, so the last dimension of the mesh cuts first
        for at in reversed(range(mesh.ndim)):
            dim = getattr(parameter.placements[at], "dim", None)
            if dim is not None:
                local = _chunk(local, mesh.size(at), mesh.get_local_rank(at), dim)
        return DTensor.from_local(
            local.to(self.device, copy=True).contiguous(),
            mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def close(self) -> None:
        """No C++ object holds the group."""
        self._accelerator.end_training()


def _chunk(tensor: Tensor, num_chunks: int, index: int, dim: int) -> Tensor:
    """Chunk `index`, as torch deals them; it may be empty."""
    chunks = tensor.chunk(num_chunks, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _cut_by(tensor: Tensor) -> Iterator[Any]:
    """The groups whose ranks hold other parts of `tensor`."""
    if isinstance(tensor, DTensor):
        for at, placement in enumerate(tensor.placements):
            assert not placement.is_partial(), "gradients have met by now"
            if hasattr(placement, "dim") and tensor.device_mesh.size(at) > 1:
                yield tensor.device_mesh.get_group(at)


def _sum_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
    """Sum gradients over `group`, several in one message. One that a rank lacks is zero there."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    bucket: list[Tensor] = []
    for parameter in parameters:
        assert parameter.grad is not None
        gradient = _local(parameter.grad)
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
