"""Small networks between the layers of a frozen model. What each computes is in `stages/shared/inserts.py`."""

import re
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Tuner

Count = Annotated[int, Meta(ge=1)]
_POSITIONS = re.compile(r"f(\d+)\+l(\d+)")


class Adapter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="adapter"):
    """Bottleneck adapters after attention and MLP (<https://arxiv.org/abs/1902.00751>)."""

    default_lr: ClassVar[float] = 1e-4
    makes: ClassVar[str] = "adapter"

    length: Count = 64
    """Numbers in the middle of each adapter."""
    sites: Literal["both", "attention", "mlp"] = "both"
    """What has an adapter behind it; mlp is what ms-swift does."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.shared.inserts import Bottleneck
        from postmill.stages.train.tuners.inserts_model import insert_tuner

        return insert_tuner(Bottleneck(self.length, ["attention", "mlp"] if self.sites == "both" else [self.sites]))


class Scedit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="scedit"):
    """Edits of what each layer's skip connections carry (SCEdit, <https://arxiv.org/abs/2312.11392>)."""

    default_lr: ClassVar[float] = 1e-4
    makes: ClassVar[str] = "adapter"

    length: Count = 64
    """Numbers in the middle of each tuner."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.shared.inserts import Scedit as Config
        from postmill.stages.train.tuners.inserts_model import insert_tuner

        return insert_tuner(Config(self.length))


class ResTuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="res-tuning"):
    """A bypass beside the layers; no gradient passes through the model (<https://arxiv.org/abs/2310.19859>)."""

    default_lr: ClassVar[float] = 1e-4
    makes: ClassVar[str] = "adapter"

    length: Count = 64
    """Numbers in the middle of each of its networks, two a layer."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.shared.inserts import ResTuning as Config
        from postmill.stages.train.tuners.inserts_model import insert_tuner

        return insert_tuner(Config(self.length))


class Reft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="reft"):
    """Edits of hidden states of the prompt in a low-rank subspace (LoReFT, <https://arxiv.org/abs/2404.03592>)."""

    default_lr: ClassVar[float] = 9e-4
    makes: ClassVar[str] = "adapter"

    rank: Count = 4
    """Dimensions of the subspace."""
    layers: list[Annotated[int, Meta(ge=0)]] = []
    """Layers whose output is edited, counted from 0; without it all."""
    positions: str = "f1+l1"
    """Tokens that are edited: f2+l3 for the first 2 and last 3 of the prompt; all for every token of the row. The
    prompt ends before the first trained token."""
    share: bool = False
    """Edit first and last tokens alike, not each with weights of their own."""

    def __post_init__(self) -> None:
        if self.positions != "all" and not _POSITIONS.fullmatch(self.positions):
            raise ValueError(f"positions {self.positions}: expected all, or a number of each end like f1+l1")
        if self.positions in ("f0+l0",):
            raise ValueError(f"positions {self.positions}: nothing would be edited; give at least one token")

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        from postmill.stages.shared.inserts import Reft as Config
        from postmill.stages.train.tuners.inserts_model import insert_tuner

        found = _POSITIONS.fullmatch(self.positions)
        positions = (int(found[1]), int(found[2])) if found else None
        return insert_tuner(Config(self.rank, list(self.layers), positions, self.share))
