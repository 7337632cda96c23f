"""How a model lies on the ranks of a run. One file a form, each applied to the model from outside.

A layout decides how the model is wrapped, who computes which bins, when gradients meet, and how a whole tensor is had
from what a rank holds. The loop is the same for all of them, and so are checkpoints: they hold whole tensors. Ranks
that hold parts of one copy of the model (tensor, context parallelism) are one *data rank*: they see the same bins.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from postmill.stages.shared.forward import Forward

T = TypeVar("T")


def one_by_one(num_blocks: int) -> Iterator[tuple[int, bool]]:
    """Each micro-batch forward, then backward."""
    for number in range(num_blocks):
        yield number, True
        yield number, False


class Layout(Protocol):
    """All methods are called by every rank, in the same order."""

    device: torch.device
    """Where this rank computes."""
    num_data: int
    """Data ranks: how many share the bins of a step."""
    data_rank: int
    """Which of them this one is."""
    name: str
    """What the record says, as `fsdp, tp 2`: with another one the last bits may differ."""

    has_outputs: bool
    """Whether this rank has what the model says; of a pipeline only the last stage has."""

    def wrap(self, forward: Forward) -> nn.Module:
        """The module to call instead of `forward`. Parameters of the model are to be looked up after this."""
        ...

    def prepare(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimizer fit how tensors lie. Called once, after `wrap` and before anything is computed."""
        ...

    def gathering(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: gradients of ranks meet in the `last` one only."""
        ...

    def order(self, num_blocks: int) -> Iterable[tuple[int, bool]]:
        """Which micro-batch is computed next, and whether forward; each once forward and then once backward."""
        ...

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` makes of the model's outputs, on all ranks; called where there are outputs only."""
        ...

    def backward(self, loss: Tensor | None) -> None:
        """Add the gradient of this rank's share of the loss; over all ranks the shares are summed, not averaged."""
        ...

    def clip(self, parameters: Iterable[Tensor], norm: float) -> Tensor:
        """Scale all gradients down to `norm`, at the latest in `step`; returns the norm they had, a float32 scalar, the
        same on every rank."""
        ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update what is trained with the gradient that is there."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Summed over the data ranks, on all ranks."""
        ...

    def gather(self, rows: Tensor, *, pad: int = 0) -> Tensor:
        """The rows (first dimension) of all data ranks. A rank that has fewer adds rows of `pad`."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a parameter, or of optimizer state that lies as it does."""
        ...

    def whole_state(self, parameter: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The optimizer's state of a parameter, each tensor whole; empty where another rank saves it."""
        ...

    def restore(self, optimizer: torch.optim.Optimizer, parameter: Tensor, state: Mapping[str, Tensor]) -> None:
        """Put back what `whole_state` gave of a parameter on all ranks."""
        ...

    def part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """What this rank holds of a whole `tensor` that lies as `parameter` does, on its device."""
        ...

    def close(self) -> None:
        """Leave the ranks' group. The wrapped model cannot be called any more; a second call does nothing."""
        ...
