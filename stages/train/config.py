"""Options of `train`, in groups. What is learned, what is trained, how and how fast are choices out of tables."""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.spec import LAST_BITS, SAME_BYTES, Port, Stage
from postmill.stages.train.chord_options import Chord
from postmill.stages.train.objectives.options import OBJECTIVES, Sft
from postmill.stages.train.optimizers import OPTIMIZERS, AdamW
from postmill.stages.train.parallel.options import Parallel
from postmill.stages.train.schedules import SCHEDULES, Constant, Cosine, lr_at
from postmill.stages.train.tuners.lora import Lora
from postmill.stages.train.tuners.table import TUNERS


class Batch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much is computed at a time."""

    bins_per_step: Annotated[int, Meta(ge=1)] = 8
    """Bins behind each update, over all ranks. Accumulation follows from it."""
    micro_bins: Annotated[int, Meta(ge=1), LAST_BITS] = 1
    """Bins that one rank computes at a time. Costs memory, never changes the gradient but for rounding."""

    def __post_init__(self) -> None:
        if self.bins_per_step % self.micro_bins:
            raise ValueError(f"micro_bins {self.micro_bins} does not divide bins_per_step {self.bins_per_step}")


class Compute(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is computed with. None of these is another method; some are another rounding."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrices are multiplied in. Trained weights are float32 in any case. auto: bfloat16 on a GPU that has it."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What a full model's weights are saved in; auto is what the base model's are stored in."""
    attention: Annotated[Literal["auto", "flash", "per-row"], LAST_BITS] = "auto"
    """flash: flash-attn's varlen kernel (auto on a GPU where it is installed); per-row: torch's kernel on each row.
    Rows of a bin never see each other in either."""
    liger: Annotated[bool, LAST_BITS] = False
    """Compute norms, rotary embeddings and SwiGLU with Liger's kernels; for Llama, Mistral, Qwen2 and Qwen3 on a CUDA
    GPU. The numbers are the same but for rounding below float32."""
    quant: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Quantize a plain base while it loads, under an adapter (QLoRA); needs bitsandbytes. A base that postmill quantize
    made needs neither this nor a package."""
    loss_kernel: Annotated[Literal["auto", "reference", "cpp", "triton"], LAST_BITS] = "auto"
    """Backend of the fused cross-entropy."""
    gradient_checkpointing: Annotated[bool, LAST_BITS] = False
    """Compute each layer again in the backward pass: less memory, about a third more time."""
    shared_prefixes: Annotated[bool, LAST_BITS] = True
    """Compute once what rows of a bin begin with alike: a system message, the prompt of several samples or of a pair.
    Where an eighth of the tokens is saved, nothing random (dropout) makes rows different and attention is per-row."""
    deterministic: bool = True
    """Use deterministic kernels, so that a resumed run equals an unbroken one bit for bit."""


class Checkpoints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the state of a run is saved, and what is kept of it."""

    save_every: Annotated[int, Meta(ge=0), SAME_BYTES] = 200
    """Commit a checkpoint every so many steps; 0 only when stopped by a signal."""
    keep_last: Annotated[int, Meta(ge=1), SAME_BYTES] = 2
    """Newest checkpoints to keep."""
    keep_best: Annotated[int, Meta(ge=0), SAME_BYTES] = 0
    """Besides, keep the checkpoints of the best validations (--best); --valid-every commits them when it finds them."""
    keep_checkpoints: Annotated[bool, SAME_BYTES] = False
    """Keep the newest checkpoints when the run is done, too; otherwise only the best ones of --keep-best stay."""
    keep_state: bool = False
    """Keep the optimizer's state in the result, so that a run with --from goes on where this one ended. A full model is
    then saved in float32."""


class Measure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured beside the loss of each step."""

    valid_every: Annotated[int, Meta(ge=0)] = 0
    """Measure the loss on `--valid` every so many steps; it is measured at the end in any case."""
    best: str = "loss"
    """What makes a validation better than another: the loss, or a metric of the objective, like accuracy or
    reward_accuracy; for --keep-best and --patience."""
    patience: Annotated[int, Meta(ge=0)] = 0
    """Stop early after so many validations in a row that were no better than one before; 0 never does."""
    watchdog: Annotated[float | None, SAME_BYTES] = None
    """Stop with exit code 79 when the loss stays above this."""
    watchdog_steps: Annotated[int, Meta(ge=1), SAME_BYTES] = 3
    """For so many steps in a row."""
    channel_loss: bool = False
    """Record the loss of each channel, at the cost of one more matrix product in the head."""
    row_losses: bool = False
    """Write what each trained span of each row lost at each step to row_losses.arrow, at the same cost."""
    sample_every: Annotated[int, Meta(ge=0)] = 0
    """Answer the prompts of --sample-prompts every so many steps, into samples.jsonl; 0: only at the end."""
    sample_tokens: Annotated[int, Meta(ge=1)] = 64
    """Longest of these answers, in tokens."""
    profile_steps: Annotated[str, SAME_BYTES] = ""
    """Write a trace of a step (3) or of some (3-5), counted from 1, beside the checkpoints, for Perfetto or
    chrome://tracing."""

    def __post_init__(self) -> None:
        if self.profile_steps and self.profiled is None:
            raise ValueError(f"profile_steps {self.profile_steps}: expected a step like 3, or some like 3-5")

    @property
    def profiled(self) -> tuple[int, int] | None:
        """First and last step of --profile-steps, counted from 1."""
        found = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", self.profile_steps)
        if found is None:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        return (first, last) if first <= last else None


class Train(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Train a model, or an adapter for it, on packed tokens."""

    objective: Annotated[Any, OBJECTIVES] = Sft()
    """What is learned."""
    tuner: Annotated[Any, TUNERS] = Lora()
    """What of the model is trained: low-rank adapters, or every weight."""
    optimizer: Annotated[Any, OPTIMIZERS] = AdamW()
    """How gradients become updates."""
    schedule: Annotated[Any, SCHEDULES] = Cosine()
    """How the learning rate moves after warm-up."""
    epochs: Annotated[int, Meta(ge=1)] = 3
    """How often each bin is trained on."""
    steps: Annotated[int, Meta(ge=0)] = 0
    """Stop after this many steps, whatever `epochs` says; 0 counts by epochs."""
    lr: Annotated[float, Meta(ge=0)] | None = None
    """Peak learning rate; without it the tuner's: 1e-4 for lora and 1e-5 for full."""
    warmup: Annotated[float, Meta(ge=0)] = 0.03
    """Warm-up: a share of all steps below 1, or a number of steps from 1 up."""
    min_lr: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of the peak that the rate falls to."""
    lr_groups: list[str] = []
    """Parameters that learn faster or slower, as REGEX=FACTOR of the rate: embed_tokens=0.1. The first that fits
    counts."""
    clip: Annotated[float, Meta(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 never does."""
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Save, and validate with, a running mean of the trained weights: each step keeps this share of it (0.99 or 0.999).
    0: the weights themselves."""
    neftune_alpha: Annotated[float, Meta(ge=0)] = 0.0
    """Uniform noise on the embeddings, alpha / sqrt(row length * hidden size) wide (NEFTune, 5 is usual)."""
    router_aux: Annotated[float, Meta(ge=0)] | None = None
    """Strength of the loss that keeps a mixture's experts evenly used; without it what the model's config says
    (router_aux_loss_coef where output_router_logits is true, otherwise 0)."""
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    """Decides adapters' first weights, the order of bins, dropout and noise."""
    batch: Batch = Batch()
    compute: Compute = Compute()
    parallel: Parallel = Parallel()
    checkpoints: Checkpoints = Checkpoints()
    measure: Measure = Measure()
    chord: Chord = Chord()

    def __post_init__(self) -> None:
        if self.checkpoints.keep_best and not self.measure.valid_every:
            raise ValueError("keep_best needs valid_every: without validation no checkpoint is better than another")
        if self.measure.patience and not self.measure.valid_every:
            raise ValueError("patience needs valid_every: without validation no run is over early")
        if self.min_lr and isinstance(self.schedule, Constant):
            raise ValueError(f"min_lr {self.min_lr} and schedule constant: its rate does not fall; leave one out")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        return float(self.tuner.default_lr if self.lr is None else self.lr)

    def lr_at(self, step: int, num_steps: int) -> float:
        """Learning rate of update `step`, counted from 0, of `num_steps`."""
        return lr_at(self.schedule, self.peak_lr, step, num_steps, warmup=self.warmup, min_lr=self.min_lr)


def output_kind(cfg: Any) -> str:
    """`adapter` or `model`."""
    return str(cfg.tuner.makes)


STAGE = Stage(
    name="train",
    version=2,
    config=Train,
    inputs={
        "packed": Port(kinds=("packed",), help="a packed artifact: the bins to train on"),
        "model": Port(
            kinds=("model",), flag="-m", help="the model to start from: a folder, or owner/name on Hugging Face"
        ),
        "from": Port(
            kinds=("adapter", "model"),
            flag="--from",
            required=False,
            help="start with the weights of this adapter (or model, with --tuner full) for the model of -m, and with"
            " its optimizer's state if it kept that",
        ),
        "valid": Port(
            kinds=("packed",), flag="--valid", help="a packed artifact to measure the loss on", required=False
        ),
        "pixels": Port(
            kinds=("pixels",),
            flag="--pixels",
            many=True,
            required=False,
            help="what pixels made of the rows' pictures, also of those of --valid; without it they are made again",
        ),
        "sample_prompts": Port(
            kinds=("file",),
            flag="--sample-prompts",
            required=False,
            help='prompts to answer while training, one JSON object a line: {"prompt": "..."} or {"messages": [...]}',
        ),
        "own_loss": Port(
            kinds=("function",),
            flag="--own-loss",
            required=False,
            resolver="postmill.stages.train.own_file:resolve",
            help="the function of --objective own; --objective file.py:function says both",
        ),
        "scores": Port(
            kinds=("scores",),
            flag="--scores",
            named=True,
            many=True,
            required=False,
            help="log-probs another model gave the same rows, as ref=DIR (valid.ref=DIR for those of --valid)",
        ),
        "rewards": Port(
            kinds=("rewards",),
            flag="--rewards",
            many=True,
            required=False,
            help="rewards of the rollouts that were packed, for --objective rl",
        ),
        "demonstrations": Port(
            kinds=("packed",),
            flag="--demonstrations",
            required=False,
            help="a packed artifact of given answers to learn beside the objective, see --mu",
        ),
    },
    output=output_kind,
    example="postmill train packed/ -m base/ -o run/ --tuner lora --epochs 2 --lr 2e-4",
    first=(
        "objective",
        "tuner",
        "optimizer",
        "schedule",
        "lora.rank",
        "lora.alpha",
        "lora.targets",
        "lora.modules_to_save",
        "epochs",
        "steps",
        "lr",
        "warmup",
        "adamw.weight_decay",
        "seed",
        "batch.bins_per_step",
        "batch.micro_bins",
        "compute.gradient_checkpointing",
        "parallel.shard",
        "parallel.tp",
        "parallel.cp",
        "parallel.pp",
        "checkpoints.save_every",
        "measure.valid_every",
    ),
    ranks=True,
)
