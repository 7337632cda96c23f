"""Demonstrations beside samples: each step adds a share of their cross-entropy to the objective's loss.

Both losses have normalisers of their own, which the plan knows, so the share is that of the step whatever is computed
at a time. Source: CHORD, <https://arxiv.org/abs/2508.11408>, whose phi is a constant for the gradient.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import torch

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.shared.asked import Ask, Outputs
from postmill.stages.shared.batch import Batch
from postmill.stages.train import config
from postmill.stages.train.chord_options import Chord
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.objectives.adaptive import weighted
from postmill.stages.train.objectives.interface import ConstantsObjective, Loss, Objective, Past
from postmill.stages.train.objectives.needs import Needs
from postmill.stages.train.objectives.options import Sft
from postmill.stages.train.parallel.layout import Layout
from postmill.stages.train.plan import Data, Steps
from postmill.stages.train.step import Gradient, accumulate


class PhiLoss:
    """sum_t w_t * p_t (1 - p_t) * -log p_t / norm, with p_t (1 - p_t) a constant."""

    needs = Needs(stats=frozenset({"logp"}))

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """Log-probs of the trained tokens."""
        return Ask(self.needs.stats)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """The tokens of `batch`."""
        assert outputs.logp_T is not None
        p_T = outputs.logp_T.detach().exp()
        return weighted(p_T * (1 - p_T), outputs, batch, "tokens", norms)


class Share:
    """`share` times an objective."""

    def __init__(self, objective: Objective, share: float) -> None:
        self.needs, self._objective, self._share = objective.needs, objective, share

    def ask(self, batch: Batch, norms: Mapping[str, float]) -> Ask:
        """What the objective asks."""
        return self._objective.ask(batch, norms)

    def loss(self, outputs: Outputs, batch: Batch, norms: Mapping[str, float], constants: Mapping[str, float]) -> Loss:
        """Its terms, smaller; what it measures as it is."""
        whole = self._objective.loss(outputs, batch, norms, constants)
        parts = {name: self._share * part for name, part in whole.parts.items()}
        return Loss(self._share * whole.total, parts, whole.metrics)

    def summary(self, outputs: Outputs, batch: Batch) -> torch.Tensor:
        """See `ConstantsObjective`."""
        return cast("ConstantsObjective", self._objective).summary(outputs, batch)

    def constants(self, summary_RS: torch.Tensor, norms: Mapping[str, float], past: Past = ()) -> dict[str, float]:
        """See `ConstantsObjective`."""
        return cast("ConstantsObjective", self._objective).constants(summary_RS, norms, past)


class Demonstrations:
    """Their bins, in an order that is the same for every run, and their loss."""

    def __init__(self, cfg: config.Train, data: Data, num_ranks: int) -> None:
        """Raises ConfigError (2) for a number of bins that ranks cannot share."""
        bins = cfg.chord.demonstration_bins
        if bins % num_ranks:
            raise ConfigError(
                f"--demonstration-bins {bins}: not a multiple of {num_ranks} data ranks; change one of them", USAGE
            )
        self._chord: Chord = cfg.chord
        loss, micro_bins = Sft(), math.gcd(cfg.batch.micro_bins, bins // num_ranks)
        batch = config.Batch(bins_per_step=bins, micro_bins=micro_bins)
        self._cfg = msgspec.structs.replace(cfg, objective=loss, seed=0, batch=batch)
        self._steps = Steps(self._cfg, data.reader, num_ranks)
        self._objective: Objective = PhiLoss() if cfg.chord.phi else loss.build()
        self._source = BatchSource(data.reader, self._objective.needs, pixels=data.pixels)

    def share(self, update: int) -> float:
        """Of update `update` of the run."""
        return self._chord.at(update)

    def add(self, gradient: Gradient, forward: Any, layout: Layout, update: int) -> Gradient:
        """The step's gradient with theirs, which is added to the parameters of `forward`."""
        share = self.share(update)
        metrics = gradient.metrics | {"mu": torch.tensor(share, dtype=torch.float64)}
        if not share:
            return gradient._replace(metrics=metrics)
        step = self._steps[self._chord.mu_start + update]
        theirs = accumulate(self._cfg, forward, Share(self._objective, share), self._source, step, layout=layout)
        return gradient._replace(
            loss=gradient.loss + theirs.loss,
            metrics=metrics | {"demonstrations": theirs.loss / share},
            data_seconds=gradient.data_seconds + theirs.data_seconds,
        )
