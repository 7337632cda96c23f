"""Learning rates: pure functions of the step, so that there is no scheduler state to save or to lose."""

import math
from collections.abc import Callable

from postmill.stages.train.config import Train

# A shape maps progress through the steps after warm-up, in [0, 1], and wsd's decay share to a share of the peak.
SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, decay: 1.0,
    "linear": lambda done, decay: 1.0 - done,
    "cosine": lambda done, decay: 0.5 * (1.0 + math.cos(math.pi * done)),
    "wsd": lambda done, decay: 1.0 if decay == 0 else min(1.0, (1.0 - done) / decay),
}


def warmup_steps(cfg: Train, num_steps: int) -> int:
    """How many steps warm-up takes: a share of `num_steps` rounded up, or a number."""
    return math.ceil(cfg.warmup * num_steps) if cfg.warmup < 1 else min(int(cfg.warmup), num_steps)


def lr_at(cfg: Train, step: int, num_steps: int) -> float:
    """Learning rate of update `step`, counted from 0, of `num_steps`.

    Warm-up rises linearly and reaches the peak at its last step; the first step's rate is not 0. The step after the
    last one would have the lowest rate.
    """
    warmup = warmup_steps(cfg, num_steps)
    if step < warmup:
        return cfg.peak_lr * (step + 1) / warmup
    rest = num_steps - warmup
    done = (step - warmup) / rest
    # wsd's decay is a share of all steps; shapes see the steps after warm-up
    share = min(1.0, cfg.decay * num_steps / rest)
    return cfg.peak_lr * (cfg.min_lr + (1.0 - cfg.min_lr) * SHAPES[cfg.schedule](done, share))
