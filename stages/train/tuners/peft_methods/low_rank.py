"""Kin of LoRA: products of small matrices, combined in other ways."""

from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

from postmill.stages.train.tuners.peft_config import PeftMethod

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Tuner

Count = Annotated[int, Meta(ge=1)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]


class Loha(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="loha"):
    """Two low-rank products, multiplied element by element (FedPara, <https://arxiv.org/abs/2108.06098>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("LoHaConfig", names={"rank": "r", "dropout": "rank_dropout"})

    rank: Count = 8
    """Rank of each adapter."""
    alpha: Positive = 8.0
    """An adapter is scaled by alpha / rank."""
    dropout: Dropout = 0.0
    """Dropout of ranks."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Lokr(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="lokr"):
    """A Kronecker product of two matrices, one of low rank (KronA, <https://arxiv.org/abs/2212.10650>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("LoKrConfig", names={"rank": "r", "dropout": "rank_dropout"})

    rank: Count = 8
    """Rank of each adapter."""
    alpha: Positive = 8.0
    """An adapter is scaled by alpha / rank."""
    dropout: Dropout = 0.0
    """Dropout of ranks."""
    decompose_both: bool = False
    """Give the first matrix a low rank, too."""
    decompose_factor: int = -1
    """Size of the first matrix; -1 makes the two nearly equal."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Delora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="delora"):
    """A low-rank change of bounded size, direction and strength apart (DeLoRA, <https://arxiv.org/abs/2503.18225>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "DeloraConfig", names={"rank": "r", "strength": "delora_lambda", "dropout": "module_dropout"}
    )

    rank: Count = 8
    """Rank of each adapter."""
    strength: Positive = 15.0
    """Bound of the change when training begins."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Gralora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gralora"):
    """A grid of blocks, each of a low rank of its own (GraLoRA, <https://arxiv.org/abs/2505.20355>)."""

    default_lr: ClassVar[float] = 0.0001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "GraloraConfig",
        names={"rank": "r", "blocks": "gralora_k", "plain_rank": "hybrid_r", "dropout": "gralora_dropout"},
    )

    rank: Count = 32
    """Rank of all blocks together; a multiple of `blocks`."""
    alpha: Positive = 64.0
    """An adapter is scaled by alpha / rank."""
    blocks: Count = 2
    """Blocks a side; divides the layers' sizes."""
    plain_rank: Annotated[int, Meta(ge=0)] = 0
    """Rank of a plain LoRA beside the blocks."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Hira(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="hira"):
    """The weight times a low-rank product, element by element (HiRA, <https://openreview.net/forum?id=TwJrTz9cRS>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("HiraConfig", names={"rank": "r", "dropout": "hira_dropout"})

    rank: Count = 32
    """Rank of each adapter."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Glora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="glora"):
    """Learned scale and shift of weights, inputs and biases (GLoRA, <https://arxiv.org/abs/2306.07967>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("GloraConfig", names={"rank": "r"})

    rank: Count = 8
    """Rank of each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Deft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="deft"):
    """Takes a low-rank part out of the weight and puts another in its place (DEFT)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("DeftConfig", names={"rank": "r", "dropout": "deft_dropout"})

    rank: Count = 8
    """Rank of each adapter."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Peanut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="peanut"):
    """Adapters that are small networks of the weight itself (PEANuT, <https://arxiv.org/abs/2410.01870>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("PeanutConfig", names={"rank": "r"})

    rank: Count = 32
    """Rank of each adapter."""
    depth: Annotated[int, Meta(ge=0)] = 0
    """Hidden layers of each network; an even number."""
    scaling: Positive = 1.0
    """An adapter is scaled by this."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Psoft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="psoft"):
    """Rotations inside the weight's main subspace (PSOFT, <https://openreview.net/forum?id=FSHrinMArK>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "PsoftConfig", names={"rank": "r", "alpha": "psoft_alpha", "dropout": "psoft_dropout"}, seed="random_seed"
    )

    rank: Count = 32
    """Rank of the subspace."""
    alpha: Positive = 32.0
    """An adapter is scaled by alpha / rank."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Osf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="osf"):
    """Full-rank training outside the weight's main directions, which stay (OSF, <https://arxiv.org/abs/2504.07097>)."""

    default_lr: ClassVar[float] = 2e-05
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("OSFConfig", names={"kept_rank": "effective_rank"})

    kept_rank: Count = 64
    """Main directions of each weight that are not trained."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)
