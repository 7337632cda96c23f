"""Methods that scale or replace numbers a layer has: (IA)^3 and tuned norms."""

import numpy as np

from postmill.stages.merge.edits import Multiply, SetRows
from postmill.stages.merge.methods.module import Edits, Module


def ia3(module: Module) -> Edits:
    """`W * l`: l scales outputs (and the bias), or inputs of feed-forward modules.

    Source: (IA)^3, <https://arxiv.org/abs/2205.05638>, section 3.3.
    """
    module.need_full_strength()
    module.linear()
    factors = module.part("ia3_l")
    of_inputs = factors.shape[0] == 1 and factors.shape[1] != 1
    edits: Edits = [(module.tensor(), Multiply(factors.T if module.is_conv1d() else factors))]
    if not of_inputs and module.has_bias():
        edits.append((module.tensor("bias"), Multiply(factors.reshape(-1, 1))))
    return edits


def ln_tuning(module: Module) -> Edits:
    """A norm's weight and bias, trained and saved whole. Source: <https://arxiv.org/abs/2312.11420>."""
    module.need_full_strength()
    return [
        (
            module.tensor(name.removeprefix("ln_tuning_layers.")),
            SetRows(np.arange(values.size), values.reshape(-1, 1)),
        )
        for name, values in module.parts.items()
    ]
