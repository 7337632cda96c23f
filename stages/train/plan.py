"""What is known before any weight is loaded: the bins of every step, each step's normaliser, and what cannot work.

A step is a block of consecutive bins in the epoch's order, a pure function of (seed, epoch). The plan says how many
tokens, how much weight and how many rows each bin trains on, so the loss of a step can be divided by the right number
from its first micro-batch on, and neither accumulation nor the number of ranks changes a gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import tokenizer_digest, vocab_size
from postmill.io.packed import PackedReader, token_tables
from postmill.io.rewards import RewardsReader
from postmill.io.scores import ScoresReader
from postmill.stages.protocol import Input
from postmill.stages.train.config import Train
from postmill.stages.train.groups import check_groups
from postmill.stages.train.labels import check_labels, count_steps, step_labels
from postmill.stages.train.objectives.needs import Needs

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


def check_request(cfg: Train) -> None:
    """Raise ConfigError (2) for a run that could learn nothing."""
    if cfg.peak_lr == 0:
        raise ConfigError("--lr 0: nothing would be learned; give a rate above 0", USAGE)
    tuner = type(cfg.tuner).__struct_config__.tag
    if cfg.parallel.tp > 1 and tuner not in ("full", "lora"):
        raise ConfigError(
            f"--tp {cfg.parallel.tp} --tuner {tuner}: these adapters cannot be cut over ranks; use --tuner lora"
            " or full, or --shard fsdp",
            USAGE,
        )
    form = cfg.parallel
    if form.cuts_model and tuner in ("prompt-tuning", "p-tuning", "prefix-tuning"):
        raise ConfigError(
            f"--tuner {tuner}: its vectors stand before whole rows, which --shard, --tp, --cp, --ep and --pp cut or"
            " share; leave them out, or use --tuner lora",
            USAGE,
        )
    if form.pp > 1:
        _check_pipeline(cfg, tuner)
    if (form.shard != "none" or max(form.tp, form.ep, form.pp) > 1) and not cfg.optimizer.shards:
        said = f"--shard {form.shard}" if form.shard != "none" else f"--tp {form.tp} --ep {form.ep} --pp {form.pp}"
        raise ConfigError(
            f"{said}: the state of this optimizer cannot be split; use --optimizer adamw, sgd or lion",
            USAGE,
        )


def _check_pipeline(cfg: Train, tuner: str) -> None:
    """Raise ConfigError (2) for what cannot be had of a model whose layers lie on several ranks."""
    needs = cfg.objective.needs
    others = {
        f"--tuner {tuner}: its adapters look at all layers": tuner not in ("full", "lora"),
        "--lora.modules-to-save: modules beside the layers are not trained": bool(
            getattr(cfg.tuner, "modules_to_save", [])
        ),
        "--ema: means of other stages' weights are not kept": cfg.ema > 0,
        "--router-aux: only the last stage sees routers": bool(cfg.router_aux),
        "--objective: its loss looks at a step twice, or at the hidden states": needs.head.kind != "lm"
        or needs.coupling not in ("row", "group"),
    }
    for what, is_asked in others.items():
        if is_asked:
            raise ConfigError(f"--pp {cfg.parallel.pp} {what}; leave one of the two out", USAGE)


def check_quantized(cfg: Train, model: Input) -> None:
    """Raise ConfigError (2) for training that would change the weights of a quantized base."""
    assert model.path is not None
    stored = load_json(model.path / "config.json").get("quantization_config")
    tuner = type(cfg.tuner).__struct_config__.tag
    if stored and cfg.compute.quant != "none":
        raise ConfigError(f"--quant {cfg.compute.quant}: {model.path} is quantized already; leave it out", USAGE)
    if not stored and cfg.compute.quant == "none":
        return
    what = f"--quant {cfg.compute.quant}" if not stored else f"{model.path} is quantized"
    if cfg.tuner.makes == "model":
        raise ConfigError(
            f"{what}, and --tuner {tuner} trains the weights themselves; use --tuner lora, or the model before it was"
            " quantized",
            USAGE,
        )
    if getattr(cfg.tuner, "init", "default") in ("pissa", "olora", "corda", "lora-ga"):
        raise ConfigError(f"{what}, and --lora.init {cfg.tuner.init} changes the weights; choose default or eva", USAGE)


def check_objective(place: str, data: Data, needs: Needs) -> None:
    """Raise ConfigError (2) for scores that are not there, ArtifactError: (65) rows that an objective of pairs has no
    use for, (78) scores of other rows."""
    if needs.sampled and data.rewards is None:
        raise ConfigError(
            f"{place}: the objective needs rewards of its rollouts; make them with `postmill reward` and pass --rewards"
            " DIR",
            USAGE,
        )
    for name in (*needs.columns, *needs.partner_columns):
        role, _, kind = name.partition("_")
        if kind in TOP and role not in data.scores:
            raise ConfigError(
                f"{place}: the objective needs the likeliest tokens of the model it calls {role}; make them with"
                f" `postmill score --top-k 64` and pass --scores {role}=DIR",
                USAGE,
            )
        scored = data.scores.get(role) if kind in TOP else None
        if isinstance(scored, ScoresReader) and scored.artifact.manifest.config["temperature"] != needs.temperature:
            raise ConfigError(
                f"{place}: the likeliest tokens of {role} are of temperature"
                f" {scored.artifact.manifest.config['temperature']:g}, the objective's is {needs.temperature:g}; score"
                " and train with the same",
                USAGE,
            )
        if kind == "logp" and name not in needs.own and role != SAMPLER and role not in data.scores:
            what = "prompts with other rows' answers" if name in needs.partner_columns else f"the model it calls {role}"
            flags = "postmill score --partners" if name in needs.partner_columns else "postmill score"
            raise ConfigError(
                f"{place}: the objective needs log-probs of {what}; make them with `{flags}` and pass --scores"
                f" {role}=DIR",
                USAGE,
            )
    if data.rewards is not None:
        _check_rewards(place, data.rewards, needs)
    for scores in data.scores.values():
        if isinstance(scores, ScoresReader):
            scores.check(data.reader)
    if needs.group == "pair":
        _check_pairs(place, data.reader)
    if needs.group == "list":
        check_groups(place, data.reader, needs)
    if "step_label" in needs.columns:
        step_labels(data.reader, data.reader.layout()[0])
    if needs.head.problem is not None:
        check_labels(data.reader, data.reader.layout()[0], needs.head)


def _check_rewards(place: str, rewards: RewardsReader, needs: Needs) -> None:
    if "returns" in needs.columns and not rewards.has("returns"):
        raise ConfigError(
            f"{rewards.artifacts[0].path}: has no returns for a critic to learn; make them with `postmill reward"
            " --advantage gae`",
            USAGE,
        )
    if rewards.is_truncated and needs.compares_sampler:
        raise ConfigError(
            f"{place}: its rows were sampled with --top-p, --top-k or --min-p, and the engine's log-probs are not those"
            " of its choices; pass --rl.mismatch none, or sample without",
            USAGE,
        )


def _check_pairs(place: str, reader: PackedReader) -> None:
    rows, _ = reader.layout()
    found = reader.columns(rows, ["pair_id", "side"])
    _, pair, count = np.unique(found["pair_id"], return_inverse=True, return_counts=True)
    sides = np.bincount(pair, found["side"], minlength=len(count))
    alone = (found["side"] < 0) | (count[pair] != 2) | (sides[pair] != 1)
    if alone.any():
        raise ArtifactError(
            f"{place}: {int(alone.sum()):,} of {len(rows):,} rows are not one half of a pair, like row"
            f" {int(rows[np.argmax(alone)]):,}; give rows with a chosen and a rejected answer (docs/datasets.md)",
            BAD_DATA,
        )


def check_data(packed: Input, reader: PackedReader, model: Input, needs: Needs) -> None:
    """Raise ArtifactError if bins and model do not fit: nothing to train on (65), other tokenizer or ids (78)."""
    plan = reader.plan
    if len(reader) == 0 or (needs.head.kind == "lm" and int(plan.trained_tokens.sum()) == 0):
        raise ArtifactError(
            f"{packed.path}: {len(reader)} bins with {int(plan.trained_tokens.sum())} trained tokens; check tokenize's"
            " --loss-scale, and its ledger",
            BAD_DATA,
        )
    assert model.path is not None
    wanted = reader.artifact.manifest.digests.get("tokenizer")
    if wanted is not None and (model.path / "tokenizer.json").is_file():
        found = tokenizer_digest(model.path)
        if found != wanted:
            raise ArtifactError(
                f"{packed.path}: its tokens were made with tokenizer {wanted}, {model.path} has {found}; tokenize with"
                " this model, or train the model they were made for",
                MISMATCH,
            )
    num_rows = vocab_size(model.path)
    highest = max_id(reader)
    if num_rows is not None and highest >= num_rows:
        raise ArtifactError(
            f"{packed.path}: holds token id {highest}, {model.path} has a vocabulary of {num_rows}; tokenize with"
            " this model's tokenizer",
            MISMATCH,
        )


def max_id(reader: PackedReader) -> int:
    """The highest token id of all rows; -1 without any."""
    highest = -1
    for tokens in reader.tokens:
        for table in token_tables(tokens):
            for batch in table:
                ids = batch.column("input_ids").values.to_numpy()
                highest = max(highest, int(ids.max())) if len(ids) else highest
    return highest


def closing_ids(reader: PackedReader) -> dict[int, int]:
    """How often each token is the first of a closing that is trained on: what the model learns to stop with."""
    counts: dict[int, int] = {}
    for tokens in reader.tokens:
        for table in token_tables(tokens):
            for batch in table:
                found, times = np.unique(_closings(batch), return_counts=True)
                for token, number in zip(found.tolist(), times.tolist(), strict=True):
                    counts[token] = counts.get(token, 0) + number
    return counts


def _closings(batch: object) -> NDArray[np.int32]:
    """First closing token of each turn of a batch of TOKENS_V1 in which that token has a weight."""
    import pyarrow as pa

    assert isinstance(batch, pa.RecordBatch)
    ids, turns, spans = (batch.column(name) for name in ("input_ids", "turns", "spans"))
    starts = ids.offsets.to_numpy()

    def absolute(column: pa.ListArray, name: str) -> NDArray[np.int64]:
        """Field `name` of every item, as an index into the batch's ids."""
        lengths = np.diff(column.offsets.to_numpy())
        values = column.flatten().field(name).to_numpy(zero_copy_only=False).astype(np.int64)
        absolute_values: NDArray[np.int64] = values + np.repeat(starts[:-1], lengths)
        return absolute_values

    closing, end = absolute(turns, "closing"), absolute(turns, "generated_end")
    closing = closing[closing < end]
    begin, stop = absolute(spans, "start"), absolute(spans, "end")
    if not len(begin) or not len(closing):
        return np.empty(0, np.int32)
    at = np.searchsorted(begin, closing, side="right") - 1
    trained = (at >= 0) & (closing < stop[np.maximum(at, 0)])
    values: NDArray[np.int32] = ids.values.to_numpy()[closing[trained]]
    return values


class Channels(NamedTuple):
    """The channels of a packed artifact's rows. Rows without one are in the channel `-`."""

    names: list[str]
    of_row: NDArray[np.int64]
    """Index into `names`, by row ordinal."""


def read_channels(reader: PackedReader) -> Channels:
    """All channels, by name."""
    found: list[str] = []
    for tokens in reader.tokens:
        for table in token_tables(tokens):
            for batch in table:
                found += [name or "-" for name in batch.column("channel").to_pylist()]
    names, of_row = np.unique(np.array(found, dtype=str), return_inverse=True)
    return Channels(names.tolist(), of_row.astype(np.int64))
