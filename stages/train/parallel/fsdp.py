"""Weights, gradients and moments in shards, a layer whole only while it computes: torch's FSDP2 (`fully_shard`).

Source: PyTorch FSDP, <https://arxiv.org/abs/2304.11277>, and torch.distributed.fsdp.fully_shard. A rank holds 1/N of
what is trained and of the base; a layer's weights are gathered before it runs, and gradients are reduced as they come.
"""

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from postmill.stages.shared.forward import Forward


class Fsdp:
    """Each decoder layer is a group of its own; embedding, last norm and head are one with the `Forward`."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._device = accelerator.device
        self._mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))

    def wrap(self, forward: Forward) -> nn.Module:
        """`forward`, its parameters replaced by sharded ones on this rank's device."""
        names = set(getattr(forward.model, "_no_split_modules", None) or [])
        for module in forward.model.get_decoder().modules():
            if type(module).__name__ in names:
                fully_shard(module, mesh=self._mesh)
        # by default the outermost group stays gathered after its forward pass, and after a validation there is no
        # backward pass to end that: the optimizer would update shards that nobody reads
        fully_shard(forward, mesh=self._mesh, reshard_after_forward=True)
        register_fsdp_forward_method(forward, "own_logits")
        register_fsdp_forward_method(forward, "kernel_deviation")
        return forward.to(self._device)

    def gathering(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients stay whole on each rank until the last micro-batch."""
        module.set_requires_gradient_sync(last)  # type: ignore[operator]  # a method that fully_shard added
        return contextlib.nullcontext()

    def clip(self, parameters: Iterable[Tensor], norm: float) -> Tensor:
        """The norm is summed over shards and ranks."""
        return self.whole(torch.nn.utils.clip_grad_norm_(list(parameters), norm))

    def whole(self, tensor: Tensor) -> Tensor:
        """Gathered from all ranks."""
        if not isinstance(tensor, DTensor):
            return tensor.detach()
        gathered: Tensor = tensor.full_tensor()
        return gathered.detach()

    def part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """The shard that goes with the parameter's; a scalar (the step count) is whole on every rank."""
        if tensor.ndim == 0 or not isinstance(parameter, DTensor):
            return tensor.to(parameter.device)
        return distribute_tensor(
            tensor.to(self._device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )

    def close(self) -> None:
        """No C++ object holds the group."""
        self._accelerator.end_training()
