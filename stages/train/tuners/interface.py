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
    """Folder of the checkpoint to go on from, with what `save` wrote."""
    head: Head = LM
    """What stands on the model's layers."""


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
    packages: tuple[str, ...] = ()
    """Libraries, besides torch and transformers, whose versions decide the result."""
