"""What the training loop knows of a tuner: how the model to train is made, and how what was trained is saved.

`--tuner` chooses a struct of options. It says three things that are read before torch loads, and builds a `Tuner`:

    default_lr: ClassVar[float]     the learning rate without --lr
    makes: ClassVar[str]            kind of the result: adapter or model
    build() -> Tuner                the functions below
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.stages.shared.heads import LM, Head


class Start(NamedTuple):
    """What a tuner starts from."""

    base: Path
    """Folder of the model."""
    load: Callable[[Path, torch.dtype], Any]
    """The model in a folder, on the CPU, its weights in a dtype, with the head that the objective asks for."""
    dtype: torch.dtype
    """What matrices are multiplied in: the dtype of weights that are not trained."""
    seed: int
    """Decides new weights."""
    checkpoint: Path | None
    """Folder of the checkpoint to go on from, with what `save` and `state` gave."""
    head: Head = LM
    """What stands on the model's layers."""
    num_steps: int = 1
    """Updates of the whole run."""
    loss: Callable[[Any, int], Tensor] | None = None
    """The loss of a model on a bin, a scalar with a gradient; bins are counted from 0 in the order of training."""


def _nothing(*_: Any) -> None: ...


def _no_tensors(_: Any) -> Mapping[str, Tensor]:
    return {}


class Tuner(NamedTuple):
    """Functions of one way of training. A model is a `torch.nn.Module` of transformers or peft."""

    start: Callable[[Start], Any]
    """The model to train. Parameters with `requires_grad` are trained; they are float32."""
    tensors: Callable[[Any], Mapping[str, Tensor]]
    """What a checkpoint and the result hold of the model, by the names in the file. Tensors may be shards of a rank,
    and are the model's own, not copies."""
    save: Callable[[Any, Mapping[str, Tensor], Path, str], None]
    """Write such tensors, by now whole and on the CPU, into a folder with the configs that other tools need to load
    them. The last argument is the name of the base."""
    put: Callable[[Any, Path], None] | None = None
    """Put the weights of a checkpoint's folder into a model that `start` made, in place of those it has. None where the
    model has to be made anew for that."""
    packages: tuple[str, ...] = ()
    """Libraries, besides torch and transformers, whose versions decide the result."""
    lr_factor: Callable[[str], float] = lambda _: 1.0
    """How much faster than the others the parameter of a name learns."""
    before_step: Callable[[Any, torch.optim.Optimizer, int], None] = _nothing
    """Called with the number of a step, counted from 0, before its gradient is computed; may choose what is trained."""
    before_update: Callable[[Any], None] = _nothing
    """Called when the gradient is there, before it is clipped; may add to it."""
    after_update: Callable[[Any, int], None] = _nothing
    """Called with the number of the step that was taken; gradients are still there."""
    state: Callable[[Any], Mapping[str, Tensor]] = _no_tensors
    """What a checkpoint holds besides, in STATE: numbers that `start` needs to go on."""
    one_rank: bool = False
    """Whether what is trained changes during a run, which only one process can do."""


STATE = "tuner.safetensors"
"""File of a checkpoint with what `Tuner.state` gave."""
