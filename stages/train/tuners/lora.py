"""LoRA: low-rank adapters on a frozen base, <https://arxiv.org/abs/2106.09685>; its first weights and its two rates."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Start, Tuner


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lora"):
    """Low-rank adapters."""

    default_lr: ClassVar[float] = 1e-4
    makes: ClassVar[str] = "adapter"

    rank: Annotated[int, Meta(ge=1)] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    """An adapter is scaled by alpha / rank."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    parameters: list[str] = []
    """Ends of the names of bare parameters that get an adapter: stacks of experts, like mlp.experts.down_proj."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""
    tokens: list[int] = []
    """Ids of tokens whose rows of the embedding are trained as well, like new special tokens."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    dora: bool = False
    """Train magnitude and direction apart (DoRA)."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "corda", "lora-ga", "loftq"] = "default"
    """First weights. pissa, olora: the weight's main directions; eva, corda, lora-ga: those that the data shows; loftq:
    what --quant loses of the weight. The result loads as plain LoRA, after pissa, olora, corda and lora-ga of twice the
    rank."""
    init_bins: Annotated[int, Meta(ge=1)] = 8
    """Bins that eva, corda and lora-ga look at."""
    lr_ratio: Annotated[float, Meta(gt=0)] = 1.0
    """The second factor's learning rate over the first's (LoRA+; 16 is usual)."""

    shifted_group: Annotated[int, Meta(ge=0)] = 0
    """LongLoRA: in training, tokens attend within groups of so many, half of the heads in shifted ones; 0: rows."""

    def __post_init__(self) -> None:
        if self.shifted_group == 1:
            raise ValueError("shifted_group 1: a group of one token sees nothing; give an even number, like 2048")
        if self.init != "default" and self.dora:
            raise ValueError(f"init {self.init} and dora: DoRA starts from the default; leave one out")
        if self.parameters and self.dropout:
            raise ValueError("parameters and dropout: adapters on bare parameters have none; leave one out")
        if self.init != "default" and self.parameters:
            raise ValueError(f"init {self.init} and parameters: it is for layers; leave one out")

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.lora_model import lora_tuner

        return lora_tuner(self, self._config)

    def _config(self, base: Any, given: "Start") -> Any:
        from peft import LoraConfig

        from postmill.stages.train.tuners.targets import embedding_name, find_targets, of_head, whole_modules

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft scales by a float as well
            lora_dropout=self.dropout,
            target_modules=find_targets(base, self.targets, "lora"),
            target_parameters=self.parameters or None,
            modules_to_save=whole_modules(base, self.modules_to_save, "lora") or None,
            trainable_token_indices={embedding_name(base): self.tokens} if self.tokens else None,
            use_rslora=self.rslora,
            use_dora=self.dora,
            **of_head(given.head, base),
        )
