"""How a model lies on the ranks of a run. One file a form, each applied to the model from outside.

A form decides how the model is wrapped, when gradients meet, and how a whole tensor is had from what a rank holds. The
loop is the same for all of them, and so are checkpoints: they hold whole tensors, whatever the form.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from postmill.stages.shared.forward import Forward


class Layout(Protocol):
    """All methods are called by every rank, in the same order."""

    def wrap(self, forward: Forward) -> nn.Module:
        """The module to call instead of `forward`. Parameters of the model are to be looked up after this."""
        ...

    def gathering(self, module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: gradients of ranks meet in the `last` one only."""
        ...

    def clip(self, parameters: Iterable[Tensor], norm: float) -> Tensor:
        """Scale all gradients down to `norm`; returns the norm they had, a float32 scalar, the same on every rank."""
        ...

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a parameter, or of optimizer state that lies as it does."""
        ...

    def part(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """What this rank holds of a whole `tensor` that lies as `parameter` does, on its device."""
        ...

    def close(self) -> None:
        """Leave the ranks' group. The wrapped model cannot be called any more; a second call does nothing."""
        ...
