"""Rotations and reflections of weights: norms and angles between neurons stay."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from postmill.io.errors import USAGE, ConfigError
from postmill.stages.train.tuners.peft_config import PeftMethod

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Tuner

Count = Annotated[int, Meta(ge=1)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]


class Oft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="oft"):
    """Rotations in blocks (OFT, <https://arxiv.org/abs/2306.07280>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "OFTConfig",
        names={
            "block_size": "oft_block_size",
            "dropout": "module_dropout",
            "constrained": "coft",
            "shared": "block_share",
        },
    )

    block_size: Count = 32
    """Size of a rotation; divides the layers' input sizes."""
    dropout: Dropout = 0.0
    """Share of blocks that are left out."""
    constrained: bool = False
    """Keep rotations near the identity (COFT)."""
    shared: bool = False
    """One rotation for all blocks of a layer."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Boft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="boft"):
    """Rotations made of sparse butterfly factors (BOFT, <https://arxiv.org/abs/2311.06243>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "BOFTConfig",
        names={"block_size": "boft_block_size", "factors": "boft_n_butterfly_factor", "dropout": "boft_dropout"},
    )

    block_size: Count = 4
    """Size of a block; divides the layers' input sizes."""
    factors: Count = 1
    """Butterfly factors; more reach further, and need PEFT's CUDA extension."""
    dropout: Dropout = 0.0
    """Share of blocks that are left out."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        if self.factors > 1:
            _need_butterflies(self.factors)
        return self.method.tuner(self)


class Hra(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="hra"):
    """A chain of reflections (HRA, <https://arxiv.org/abs/2405.17484>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("HRAConfig", names={"rank": "r", "orthogonal": "apply_GS"})

    rank: Count = 8
    """Number of reflections; an even number begins at the identity."""
    orthogonal: bool = False
    """Keep the reflections orthogonal (Gram-Schmidt)."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Road(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="road"):
    """Rotates and scales pairs of outputs (RoAd, <https://arxiv.org/abs/2409.00119>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("RoadConfig")

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    """How many numbers each pair has: one, two or four."""
    group_size: Count = 64
    """Outputs that are paired within; divides the layers' output sizes."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


def _need_butterflies(factors: int) -> None:
    """Raise ConfigError (2) where PEFT would take one factor instead, and say so in a warning only."""
    from peft.tuners.boft.layer import get_fbd_cuda

    from postmill.stages.shared.hf import quiet_libraries

    with quiet_libraries():
        found = get_fbd_cuda()  # type: ignore[no-untyped-call]
    if found is None:
        raise ConfigError(
            f"--boft.factors {factors}: PEFT's CUDA extension for more than one factor cannot be built here; leave it"
            " out, or use --tuner oft",
            USAGE,
        )
