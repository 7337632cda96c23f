"""Options of the optimizers, and the table of them."""

from typing import Annotated

import msgspec
from msgspec import Meta

from postmill.stages.spec import Choice


class AdamW(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="adamw"):
    """Adam with decoupled weight decay, <https://arxiv.org/abs/1711.05101>."""

    weight_decay: Annotated[float, Meta(ge=0)] = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """Memory of the gradient."""
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.95
    """Memory of its square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """Added to the denominator."""


OPTIMIZERS = Choice(
    group="postmill.optimizers",
    table={"adamw": "postmill.stages.train.optimizers:AdamW"},
)
"""How gradients become updates."""
