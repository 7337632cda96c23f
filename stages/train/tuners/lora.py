"""Options of LoRA: low-rank adapters on a frozen base."""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lora"):
    """Low-rank adapters."""

    default_lr: ClassVar[float] = 1e-4

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
