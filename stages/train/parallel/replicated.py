"""The whole model on every rank; one rank is the simplest case."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from postmill.stages.shared.forward import Forward
from postmill.stages.train.parallel.layout import T, one_by_one


class Replicated:
    """Gradients are averaged by torch's DistributedDataParallel, in buckets while the backward pass runs."""

    name = "none"
    has_outputs = True

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._wrapped: nn.Module | None = None
        self.device = accelerator.device
        self.num_data, self.data_rank = accelerator.num_processes, accelerator.process_index

    def wrap(self, forward: Forward) -> nn.Module:
        """`forward` itself on one rank."""
        if self.num_data == 1:
            return forward
        self._wrapped = self._accelerator.prepare(forward)
        return self._wrapped

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """All tensors lie alike."""

    def gathering(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """DDP's no_sync, but for the last micro-batch."""
        if last or self.num_data == 1:
            return contextlib.nullcontext()
        found: AbstractContextManager[Any] = self._accelerator.no_sync(module)
        return found

    def order(self, num_blocks: int) -> Iterable[tuple[int, bool]]:
        """One by one."""
        return one_by_one(num_blocks)

    def agreed(self, make: Callable[[], T]) -> T:
        """Every rank has outputs."""
        return make()

    def backward(self, loss: Tensor | None) -> None:
        """DDP averages what we want to be a sum."""
        assert loss is not None
        self._accelerator.backward(loss * self.num_data if self.num_data > 1 else loss)

    def clip(self, parameters: Iterable[Tensor], norm: float) -> Tensor:
        """Every rank has all gradients, so all compute the same."""
        return torch.nn.utils.clip_grad_norm_(list(parameters), norm)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Every rank takes the same."""
        optimizer.step()

    def sum(self, tensor: Tensor) -> Tensor:
        """Of all ranks."""
        if self.num_data == 1:
            return tensor
        total: Tensor = self._accelerator.reduce(tensor.to(self.device), "sum")
        return total

    def gather(self, rows: Tensor, *, pad: int = 0) -> Tensor:
        """Of all ranks."""
        if self.num_data == 1:
            return rows
        gathered: Tensor = self._accelerator.gather(self._accelerator.pad_across_processes(rows, pad_index=pad))
        return gathered

    def whole(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor.detach()

    def whole_state(self, parameter: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state itself."""
        return {key: self.whole(value) for key, value in state.items()}

    def restore(self, optimizer: torch.optim.Optimizer, parameter: Tensor, state: Mapping[str, Tensor]) -> None:
        """As it is."""
        # what is not as large as the parameter lies with it, where fused AdamW wants its `step`
        optimizer.state[parameter] = {key: self.part(tensor, parameter) for key, tensor in state.items()}

    def part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """The tensor, where the parameter is."""
        return tensor.to(parameter.device)

    def close(self) -> None:
        """DDP's reducer goes before the group.

        It is freed with Python's lock held; were its reference to the group the last one, gloo's threads would be
        joined under that lock while they wait for it to free their last tensors.
        """
        if isinstance(self._wrapped, DistributedDataParallel):
            del self._wrapped.logger, self._wrapped.reducer
        self._wrapped = None
        self._accelerator.end_training()
