"""AdaLoRA: a budget of ranks, taken from layers that need less, <https://arxiv.org/abs/2303.10512>."""

from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Tuner

Share = Annotated[float, Meta(ge=0, lt=1)]


class Adalora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="adalora"):
    """Low-rank adapters with a budget of ranks that moves to the layers that need it."""

    default_lr: ClassVar[float] = 1e-3
    makes: ClassVar[str] = "adapter"

    rank: Annotated[int, Meta(ge=1)] = 12
    """Rank of each adapter when training begins."""
    target_rank: Annotated[int, Meta(ge=1)] = 8
    """Mean rank when it ends."""
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    """An adapter is scaled by alpha / rank."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Dropout before each adapter."""
    wait: Share = 0.1
    """Share of the steps before the first rank is taken."""
    settle: Share = 0.3
    """Share of the steps that are left when the last rank was taken."""
    every: Annotated[int, Meta(ge=1)] = 1
    """Steps between two looks at the ranks."""
    orthogonality: Annotated[float, Meta(ge=0)] = 0.5
    """Strength of the term that keeps the factors orthogonal. The recorded loss is without it."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def __post_init__(self) -> None:
        if self.wait + self.settle >= 1:
            raise ValueError(f"wait {self.wait} and settle {self.settle} leave no steps in which ranks are taken")
        if self.target_rank > self.rank:
            raise ValueError(f"target_rank {self.target_rank} is more than rank {self.rank}")

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.train.tuners.adalora_model import adalora_tuner

        return adalora_tuner(self)
