"""What GPUs do, in a few numbers a kind. Matrix products reach a share of the peak; the rest is what links carry."""

import msgspec

from postmill.stages.train.cost.memory import GIB


class Kind(msgspec.Struct, frozen=True):
    """One kind of GPU, eight to a machine. Bytes a second are one way, for each GPU."""

    peak: float
    """bfloat16 operations a second."""
    share: float
    """Of the peak that a training step's matrix products reach."""
    fp8: float
    """How much faster a step is with them in 8 bits."""
    link: float
    """Bytes a second between GPUs of a machine."""
    network: float
    """Bytes a second between machines."""
    memory: float
    """Bytes of a GPU."""
    tuned: bool
    """Whether `share` was fitted to published runs; otherwise it is that of the nearest kind."""


KINDS = {
    "h100": Kind(989e12, 0.56, 1.45, 370e9, 45e9, 80 * GIB, True),
    "h100-500w": Kind(989e12, 0.345, 1.6, 370e9, 45e9, 96 * GIB, True),
    "h200": Kind(989e12, 0.56, 1.45, 370e9, 45e9, 141 * GIB, False),
    "a800": Kind(312e12, 0.68, 1.0, 160e9, 22e9, 80 * GIB, True),
    "a100": Kind(312e12, 0.68, 1.0, 250e9, 22e9, 80 * GIB, False),
}
"""h100 and a800 from runs of Megatron-Bridge and ms-swift; h100-500w from torchtitan's, whose cards were capped."""
