"""What is known before any weight is loaded: the bins of every step, and each step's normaliser.

A step is a block of consecutive bins in the epoch's order, a pure function of (seed, epoch). The plan says how many
tokens, how much weight and how many rows each bin trains on, so the loss of a step can be divided by the right number
from its first micro-batch on, and neither accumulation nor the number of ranks changes a gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from postmill.io.errors import USAGE, ConfigError
from postmill.io.packed import PackedReader
from postmill.io.rewards import RewardsReader
from postmill.stages.train.config import Train
from postmill.stages.train.labels import count_steps

if TYPE_CHECKING:
    from postmill.stages.shared.media.pixels import Pixels  # which loads torch

TOP = ("top_ids", "top_logp")
"""What a model's likeliest tokens are called in scores."""
SAMPLER = "engine"
"""The role of what sampled the rows: its log-probs are in the rollouts themselves."""


class TokenScores(Protocol):
    """What a model said of tokens."""

    def tokens(self, rows: NDArray[np.int64], lengths: NDArray[np.int64], name: str) -> NDArray[np.float32]:
        """Column `name` by token, rows end to end; NaN where a token has no score. lengths: tokens of each row."""
        ...


class Data(NamedTuple):
    """Bins, what models said of their rows, by role (`ref` is the reference of DPO), and what sampled rows earned."""

    reader: PackedReader
    scores: Mapping[str, TokenScores] = {}
    rewards: RewardsReader | None = None
    pixels: "Pixels | None" = None
    """What makes pixels of rows' pictures."""


Measure = Callable[[Data], NDArray[np.float64]]


def _of_rows(measure: Callable[[Data, NDArray[np.int64]], NDArray[np.float64]]) -> Measure:
    """A measure of bins from one of rows."""

    def of_bins(data: Data) -> NDArray[np.float64]:
        rows, starts = data.reader.layout()
        sums: NDArray[np.float64] = np.add.reduceat(np.append(measure(data, rows), 0.0), starts[:-1])
        return sums

    return of_bins


def _first_of_group(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    is_first: NDArray[np.bool_] = data.reader.columns(rows, ["side"])["side"] == 0
    return is_first.astype(np.float64)


def _chosen_tokens(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(_trained_tokens(data, rows) * _first_of_group(data, rows), np.float64)


def _labelled(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(~np.isnan(data.reader.columns(rows, ["label"])["label"]), np.float64)


def _positives(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(data.reader.columns(rows, ["side"])["side"] == 2, np.float64)


def _trained_tokens(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    tokens: NDArray[np.int32] = data.reader.columns(rows, ["trained_tokens"])["trained_tokens"]
    return tokens.astype(np.float64)


def _sampled(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    assert data.rewards is not None
    return np.where(np.isnan(data.rewards.advantage[rows]), 0.0, _trained_tokens(data, rows))


def _live(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return (_sampled(data, rows) > 0).astype(np.float64)


def _live_groups(data: Data, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """A prompt counts 1, dealt to its live rows by their tokens: by whatever part of it a step has."""
    assert data.rewards is not None
    return _sampled(data, rows) / np.maximum(data.rewards.group_tokens()[rows], 1.0)


MEASURES: dict[str, Measure] = {
    "tokens": lambda data: data.reader.plan.trained_tokens.astype(np.float64),
    "weights": lambda data: data.reader.plan.weight_sum,
    "rows": lambda data: data.reader.plan.num_rows.astype(np.float64),
    "groups": _of_rows(_first_of_group),
    "chosen_tokens": _of_rows(_chosen_tokens),
    "labelled": _of_rows(_labelled),
    "positives": _of_rows(_positives),
    "points": _of_rows(lambda data, rows: count_steps(data.reader, rows)),
    "sampled": _of_rows(_sampled),
    "live": _of_rows(_live),
    "live_groups": _of_rows(_live_groups),
}
"""What sums may be divided by: a number of each bin, summed over the bins of a step before its first micro-batch.

Of samples, `sampled` counts tokens, `live` rows and `live_groups` prompts. Rows without an advantage are in none.
"""


class Step(NamedTuple):
    """One update. `bins` is [ranks, bins per rank], -1 where the last step of an epoch runs out."""

    number: int
    epoch: int
    bins: NDArray[np.int64]
    norms: dict[str, float]
    """Sum of each measure that the objective divides by."""
    tokens: int
    trained_tokens: int

    @property
    def normaliser(self) -> float:
        """The first of them, which the record has."""
        return next(iter(self.norms.values()))

    def micro_batches(self, rank: int, micro_bins: int) -> list[NDArray[np.int64]]:
        """The bins of `rank`, in blocks. Every rank has the same number of blocks; a block of -1 only is padding."""
        starts = range(0, self.bins.shape[1], micro_bins)
        some = [at for at in starts if (self.bins[:, at : at + micro_bins] >= 0).any()]
        return [self.bins[rank, at : at + micro_bins] for at in some]


class Steps:
    """All steps of a run, by number."""

    def __init__(self, cfg: Train, reader: PackedReader, num_ranks: int, rewards: RewardsReader | None = None) -> None:
        if cfg.batch.bins_per_step % (num_ranks * cfg.batch.micro_bins):
            raise ConfigError(
                f"--bins-per-step {cfg.batch.bins_per_step}: not a multiple of {num_ranks} data ranks times"
                f" --micro-bins {cfg.batch.micro_bins}; change one of them",
                USAGE,
            )
        self._cfg, self._reader, self._num_ranks = cfg, reader, num_ranks
        self._measures = measure_bins(Data(reader, rewards=rewards), cfg.objective.needs.measures)
        self.per_epoch = -(-len(reader) // cfg.batch.bins_per_step)
        self.total = cfg.steps or cfg.epochs * self.per_epoch
        self._epoch, self._dealt = -1, np.empty((0, 0, 0), np.int64)

    def __getitem__(self, number: int) -> Step:
        """Step `number`, counted from 0."""
        epoch, within = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            order = self._reader.order(epoch, self._cfg.seed)
            per_rank = self._cfg.batch.bins_per_step // self._num_ranks
            self._epoch, self._dealt = epoch, self._reader.deal(order, self._num_ranks, per_rank)
        bins = self._dealt[within]
        real = np.sort(bins[bins >= 0])  # sorted, so that the sum is the same however the bins were dealt
        plan = self._reader.plan
        return Step(
            number,
            epoch,
            bins,
            {name: float(values[real].sum()) for name, values in self._measures.items()},
            int(plan.length[real].sum(dtype=np.int64)),
            int(plan.trained_tokens[real].sum()),
        )

    def check(self) -> None:
        """Raise ConfigError (2) if a step of the first epoch has a normaliser that is not above 0."""
        for number in range(min(self.per_epoch, self.total)):
            step = self[number]
            for name, total in step.norms.items():
                if not total > 0:
                    remedy = "choose another --normalize" if name == "weights" else "leave out rows without advantage"
                    raise ConfigError(
                        f"step {number + 1}: the sum of {name} is {total:g}, expected more than 0; {remedy}, or take"
                        " more --bins-per-step",
                        USAGE,
                    )


def measure_bins(data: Data, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Each measure, by bin."""
    return {name: MEASURES[name](data) for name in names}


def total_norms(data: Data, names: Sequence[str]) -> dict[str, float]:
    """Each measure over all bins: what a validation loss is divided by."""
    return {name: float(values.sum()) for name, values in measure_bins(data, names).items()}
