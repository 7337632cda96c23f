"""The model of a run, held for the next run of the same process: rounds of a loop train one adapter after the other on
one base. Only what a tuner can fill with other weights is held, and it has been looked at (`probe`) once."""

from pathlib import Path
from typing import Any, NamedTuple

from postmill.stages.kept import Kept
from postmill.stages.protocol import Input
from postmill.stages.shared.forward import Forward
from postmill.stages.train.config import Train
from postmill.stages.train.origin import check_loaded
from postmill.stages.train.tuners.interface import Tuner

_NAME = "train"


class Held(NamedTuple):
    """A loaded model and what is called in its place."""

    net: Any
    forward: Forward


def take(kept: Kept | None, cfg: Train, tuner: Tuner, base: Input, begun: Path | None) -> Held | None:
    """What the run before held, with the weights in `begun`; None where it has to be loaded."""
    if kept is None:
        return None
    found: Held | None = kept.take(_NAME, _made_from(cfg, base))
    if found is None or begun is None or tuner.put is None:
        return None
    tuner.put(found.net, begun)
    check_loaded(tuner.tensors(found.net), begun)
    found.forward.train()
    return found


def keep(kept: Kept | None, cfg: Train, tuner: Tuner, base: Input, held: Held, *, num_ranks: int) -> None:
    """For the next run, where that can use it."""
    if kept is not None and tuner.put is not None and num_ranks == 1:
        kept.keep(_NAME, _made_from(cfg, base), held)


def _made_from(cfg: Train, base: Input) -> object:
    """All that decides a model but its adapter's weights."""
    return base.digest, cfg.tuner, cfg.objective, cfg.compute, cfg.parallel, cfg.neftune_alpha, cfg.router_aux
