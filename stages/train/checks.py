"""What cannot work, refused before any weight is loaded: options, data and models that do not fit together."""

import numpy as np

from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import tokenizer_digest, vocab_size
from postmill.io.packed import PackedReader
from postmill.io.rewards import RewardsReader
from postmill.io.scores import ScoresReader
from postmill.stages.options import tag
from postmill.stages.protocol import Input
from postmill.stages.train.config import Train
from postmill.stages.train.groups import check_groups
from postmill.stages.train.labels import check_labels, step_labels
from postmill.stages.train.objectives.needs import Needs
from postmill.stages.train.plan import SAMPLER, TOP, Data
from postmill.stages.train.survey import max_id

PROMPT_TUNERS = ("prompt-tuning", "p-tuning", "prefix-tuning")


def check_request(cfg: Train) -> None:
    """Raise ConfigError (2) for a run that could learn nothing."""
    if cfg.peak_lr == 0:
        raise ConfigError("--lr 0: nothing would be learned; give a rate above 0", USAGE)
    tuner, optimizer = tag(cfg.tuner), tag(cfg.optimizer)
    if cfg.ema and optimizer == "schedule-free":
        raise ConfigError(
            f"--ema {cfg.ema:g} --optimizer schedule-free: both average the weights; leave one of the two out", USAGE
        )
    if cfg.compute.quant != "none" and cfg.parallel.cuts_model:
        raise ConfigError(
            f"--quant {cfg.compute.quant} --shard, --tp, --cp, --ep, --pp: a layer that bitsandbytes quantized lies"
            " whole on a rank; leave one of the two out, or take a base that postmill quantize made",
            USAGE,
        )
    if cfg.parallel.tp > 1 and tuner not in ("full", "lora"):
        raise ConfigError(
            f"--tp {cfg.parallel.tp} --tuner {tuner}: these adapters cannot be cut over ranks; use --tuner lora"
            " or full, or --shard fsdp",
            USAGE,
        )
    form = cfg.parallel
    if form.cuts_model and tuner in PROMPT_TUNERS:
        raise ConfigError(
            f"--tuner {tuner}: its vectors stand before whole rows, which --shard, --tp, --cp, --ep and --pp cut or"
            " share; leave them out, or use --tuner lora",
            USAGE,
        )
    if form.cuts_model and tuner in ("adapter", "scedit", "res-tuning", "reft"):
        raise ConfigError(
            f"--tuner {tuner}: its networks lie between whole layers, which --shard, --tp, --cp, --ep and --pp cut;"
            " leave them out, or use --tuner lora",
            USAGE,
        )
    if tuner == "res-tuning" and cfg.compute.gradient_checkpointing:
        raise ConfigError(
            "--gradient-checkpointing --tuner res-tuning: no gradient passes through the layers, so there is nothing to"
            " compute again; leave --gradient-checkpointing out",
            USAGE,
        )
    if form.pp > 1:
        _check_pipeline(cfg, tuner)
    if form.is_zero:
        _check_zero(cfg, tuner)
    if (form.offload == "nvme") != bool(form.offload_to):
        raise ConfigError("--offload nvme and --offload-to DIR go together: DIR is a folder on the fast disk", USAGE)
    if (form.shard != "none" or max(form.tp, form.ep, form.pp) > 1) and not cfg.optimizer.shards:
        said = f"--shard {form.shard}" if form.shard != "none" else f"--tp {form.tp} --ep {form.ep} --pp {form.pp}"
        raise ConfigError(
            f"{said} --optimizer {optimizer}: the state of this optimizer cannot be split; use --optimizer adamw,"
            " sgd or lion",
            USAGE,
        )


def check_watched(cfg: Train, prompts: Input | None, *, has_valid: bool) -> None:
    """Raise ConfigError (2) for something to watch that this run cannot show."""
    head, tuner = cfg.objective.needs.head.kind, tag(cfg.tuner)
    if cfg.measure.row_losses and head != "lm":
        raise ConfigError(
            f"--row-losses --objective {tag(cfg.objective)}: only losses of tokens belong to spans of a row; leave one"
            " out",
            USAGE,
        )
    if cfg.measure.valid_every and not has_valid:
        raise ConfigError(f"--valid-every {cfg.measure.valid_every}: needs --valid, rows to measure the loss on", USAGE)
    if prompts is None:
        if cfg.measure.sample_every:
            raise ConfigError(f"--sample-every {cfg.measure.sample_every}: needs --sample-prompts FILE", USAGE)
        return
    others = {
        f"--objective {tag(cfg.objective)}: this head writes no text": head != "lm",
        f"--tuner {tuner}: engines cannot put its vectors before prompts": tuner in PROMPT_TUNERS,
        "--shard, --tp, --cp, --ep, --pp: a rank has less than the whole model": cfg.parallel.cuts_model,
    }
    for what, is_asked in others.items():
        if is_asked:
            raise ConfigError(f"--sample-prompts {what}; leave one of the two out", USAGE)


def check_demonstrations(cfg: Train) -> None:
    """Raise ConfigError (2) for an objective or a layout that takes no second loss."""
    others = {
        f"--objective {tag(cfg.objective)}: its loss is not one of tokens": cfg.objective.needs.head.kind != "lm"
        or cfg.objective.needs.coupling == "step_gradients",
        f"--pp {cfg.parallel.pp}: the stages pass one kind of bins": cfg.parallel.pp > 1,
        f"--shard {cfg.parallel.shard}: DeepSpeed takes one backward pass a step": cfg.parallel.is_zero,
    }
    for what, is_asked in others.items():
        if is_asked:
            raise ConfigError(f"--demonstrations {what}; leave one of the two out", USAGE)


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


def _check_zero(cfg: Train, tuner: str) -> None:
    """Raise ConfigError (2) for what cannot be had where DeepSpeed joins parameters and deals the pieces."""
    others = {
        f"--tuner {tuner}: only full and lora were tested": tuner not in ("full", "lora"),
        f"--optimizer {tag(cfg.optimizer)}: its state cannot be dealt in pieces": tag(cfg.optimizer)
        not in ("adamw", "sgd", "lion"),
        "--ema: no rank has whole weights to take a mean of": cfg.ema > 0,
        "--quant: quantized weights cannot be joined with others": cfg.compute.quant != "none",
    }
    for what, is_asked in others.items():
        if is_asked:
            raise ConfigError(f"--shard {cfg.parallel.shard} {what}; use --shard fsdp", USAGE)


def check_quantized(cfg: Train, model: Input) -> None:
    """Raise ConfigError (2) for training that would change the weights of a quantized base."""
    assert model.path is not None
    stored = load_json(model.path / "config.json").get("quantization_config")
    tuner = tag(cfg.tuner)
    if stored and cfg.compute.quant != "none":
        raise ConfigError(f"--quant {cfg.compute.quant}: {model.path} is quantized already; leave it out", USAGE)
    is_loftq = getattr(cfg.tuner, "init", "default") == "loftq"
    if is_loftq and cfg.compute.quant == "none":
        raise ConfigError(
            "--lora.init loftq: takes up what quantizing loses, so it needs --quant nf4, fp4 or int8 on a plain model;"
            " choose another --lora.init",
            USAGE,
        )
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
    _check_scores(data, needs)
    if needs.group == "pair":
        _check_pairs(place, data.reader)
    if needs.group == "list":
        check_groups(place, data.reader, needs)
    if "step_label" in needs.columns:
        step_labels(data.reader, data.reader.layout()[0])
    if needs.head.problem is not None:
        check_labels(data.reader, data.reader.layout()[0], needs.head)


def _check_scores(data: Data, needs: Needs) -> None:
    for scores in data.scores.values():
        if not isinstance(scores, ScoresReader):
            continue
        scores.check(data.reader)
        if "aligned_text" in scores.artifact.manifest.metrics and "teacher_top_ids" not in needs.columns:
            raise ConfigError(
                f"{scores.artifact.path}: a teacher with another tokenizer; only --objective gkd learns of one", USAGE
            )


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
    columns = reader.columns(rows, ["pair_id", "side"])
    _, pair, count = np.unique(columns["pair_id"], return_inverse=True, return_counts=True)
    sides = np.bincount(pair, columns["side"], minlength=len(count))
    alone = (columns["side"] < 0) | (count[pair] != 2) | (sides[pair] != 1)
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
        digest = tokenizer_digest(model.path)
        if digest != wanted:
            raise ArtifactError(
                f"{packed.path}: its tokens were made with tokenizer {wanted}, {model.path} has {digest}; tokenize with"
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
