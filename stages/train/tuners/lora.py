"""LoRA: low-rank adapters on a frozen base, <https://arxiv.org/abs/2106.09685>."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

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
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    dora: bool = False
    """Train magnitude and direction apart (DoRA)."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.peft_model import peft_tuner

        return peft_tuner("lora", self._config)

    def _config(self, base: Any, given: "Start") -> Any:
        from peft import LoraConfig

        from postmill.stages.train.tuners.targets import find_targets, of_head, whole_modules

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft scales by a float as well
            lora_dropout=self.dropout,
            target_modules=find_targets(base, self.targets, "lora"),
            modules_to_save=whole_modules(base, self.modules_to_save, "lora") or None,
            use_rslora=self.rslora,
            use_dora=self.dora,
            **of_head(given.head),
        )
