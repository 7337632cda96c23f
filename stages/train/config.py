"""Options of `train`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from postmill.stages.spec import Port, Stage

SHARE = Meta(ge=0, le=1)


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters; used when `tuner` is lora."""

    rank: Annotated[int, Meta(ge=1)] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    """An adapter is scaled by alpha / rank."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    dora: bool = False
    """Train magnitude and direction apart (DoRA)."""


class Train(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Train a model, or an adapter for it, on packed tokens."""

    tuner: Literal["lora", "full"] = "lora"
    """Train low-rank adapters, or every weight."""
    lora: Lora = Lora()
    epochs: Annotated[int, Meta(ge=1)] = 3
    """How often each bin is trained on."""
    steps: Annotated[int, Meta(ge=0)] = 0
    """Stop after this many steps, whatever `epochs` says; 0 counts by epochs."""
    bins_per_step: Annotated[int, Meta(ge=1)] = 8
    """Bins behind each update, over all ranks. Accumulation follows from it."""
    micro_bins: Annotated[int, Meta(ge=1)] = 1
    """Bins that one rank computes at a time. Costs memory, never changes the gradient."""
    normalize: Literal["tokens", "weights", "rows"] = "tokens"
    """What a step's sum of weight * loss is divided by: trained tokens (as ms-swift), the sum of weights, or rows."""
    lr: Annotated[float, Meta(ge=0)] | None = None
    """Peak learning rate; without it 1e-4 for lora and 1e-5 for full."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the rate falls after warm-up; wsd stays at the peak and falls linearly over the last `decay`."""
    warmup: Annotated[float, Meta(ge=0)] = 0.03
    """Warm-up: a share of all steps below 1, or a number of steps from 1 up."""
    min_lr: Annotated[float, SHARE] = 0.0
    """Share of the peak that the rate falls to."""
    decay: Annotated[float, SHARE] = 0.1
    """Share of all steps in which wsd falls."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    """AdamW: memory of the gradient."""
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.95
    """AdamW: memory of its square."""
    eps: Annotated[float, Meta(gt=0)] = 1e-8
    """AdamW: added to the denominator."""
    clip: Annotated[float, Meta(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 never does."""
    label_smoothing: Annotated[float, SHARE] = 0.0
    """Share of each target's probability that is spread over the vocabulary."""
    neftune_alpha: Annotated[float, Meta(ge=0)] = 0.0
    """Uniform noise on the embeddings, alpha / sqrt(row length * hidden size) wide (NEFTune, 5 is usual)."""
    router_aux: Annotated[float, Meta(ge=0)] | None = None
    """Strength of the loss that keeps a mixture's experts evenly used; without it what the model's config says
    (router_aux_loss_coef where output_router_logits is true, otherwise 0)."""
    seed: Annotated[int, Meta(ge=0, lt=2**62)] = 0
    """Decides adapters' first weights, the order of bins, dropout and noise."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What matrices are multiplied in. Trained weights are float32 in any case. auto: bfloat16 on a GPU that has it."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What a full model's weights are saved in; auto is what the base model's are stored in."""
    attention: Literal["auto", "flash", "rows"] = "auto"
    """flash: flash-attn's varlen kernel (auto on a GPU where it is installed); rows: torch's kernel on each row.
    Rows of a bin never see each other in either."""
    liger: bool = False
    """Compute norms, rotary embeddings and SwiGLU with Liger's kernels; for Llama, Mistral, Qwen2 and Qwen3 on a CUDA
    GPU. The numbers are the same but for rounding below float32."""
    loss_kernel: Literal["auto", "reference", "cpp", "triton"] = "auto"
    """Backend of the fused cross-entropy."""
    shard: Literal["none", "fsdp"] = "none"
    """How several ranks hold the model. none: each all of it; fsdp: each a part of weights, gradients and AdamW's
    moments (torch's FSDP2), for models that do not fit on one."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass: less memory, about a third more time."""
    deterministic: bool = True
    """Use deterministic kernels, so that a resumed run equals an unbroken one bit for bit."""
    valid_every: Annotated[int, Meta(ge=0)] = 0
    """Measure the loss on `--valid` every so many steps; it is measured at the end in any case."""
    channel_loss: bool = False
    """Record the loss of each channel, at the cost of one more matrix product in the head."""
    save_every: Annotated[int, Meta(ge=0)] = 200
    """Commit a checkpoint every so many steps; 0 only when stopped by a signal."""
    keep_last: Annotated[int, Meta(ge=1)] = 2
    """Newest checkpoints to keep."""
    keep_best: Annotated[int, Meta(ge=0)] = 0
    """Besides, keep the checkpoints of the lowest validation losses; one is committed when --valid-every finds such."""

    keep_checkpoints: bool = False
    """Keep the newest checkpoints when the run is done, too; otherwise only the best ones of --keep-best stay."""

    def __post_init__(self) -> None:
        if self.bins_per_step % self.micro_bins:
            raise ValueError(f"micro_bins {self.micro_bins} does not divide bins_per_step {self.bins_per_step}")
        if self.keep_best and not self.valid_every:
            raise ValueError("keep_best needs valid_every: without validation no checkpoint is better than another")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up."""
        if self.lr is not None:
            return self.lr
        return 1e-4 if self.tuner == "lora" else 1e-5


def output_kind(cfg: Any) -> str:
    """`adapter` or `model`."""
    return "adapter" if cfg.tuner == "lora" else "model"


STAGE = Stage(
    name="train",
    version=1,
    config=Train,
    inputs={
        "packed": Port(kinds=("packed",), help="a packed artifact: the bins to train on"),
        "model": Port(
            kinds=("model",), flag="-m", help="the model to start from: a folder, or owner/name on Hugging Face"
        ),
        "valid": Port(
            kinds=("packed",), flag="--valid", help="a packed artifact to measure the loss on", required=False
        ),
    },
    output=output_kind,
    example="postmill train packed/ -m base/ -o run/ --tuner lora --epochs 2 --lr 2e-4",
    safe_to_change=frozenset({"shard", "save_every", "keep_last", "keep_best", "keep_checkpoints"}),
    ranks=True,
)
