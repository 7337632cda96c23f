"""Methods that learn little because random bases, frequencies or vectors are shared or frozen."""

from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import Meta

from postmill.stages.train.tuners.peft_config import PeftMethod

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Tuner

Count = Annotated[int, Meta(ge=1)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]


class Vera(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="vera"):
    """Random matrices that all layers share; scales of their rows are trained (VeRA, <https://arxiv.org/abs/2310.11454>)."""

    default_lr: ClassVar[float] = 0.004
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "VeraConfig", names={"rank": "r", "dropout": "vera_dropout", "initial": "d_initial"}, seed="projection_prng_key"
    )

    rank: Count = 256
    """Rank of the shared matrices."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    initial: Positive = 0.1
    """What the inner scales begin with."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Pvera(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="pvera"):
    """VeRA whose inner scales are drawn around a learned mean (PVeRA, <https://arxiv.org/abs/2512.07703>)."""

    default_lr: ClassVar[float] = 0.004
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "PveraConfig",
        names={"rank": "r", "dropout": "pvera_dropout", "initial": "d_initial"},
        seed="projection_prng_key",
    )

    rank: Count = 256
    """Rank of the shared matrices."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    initial: Positive = 0.1
    """What the inner scales begin with."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Randlora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="randlora"):
    """Random bases of full rank together, scaled by what is trained (RandLoRA, <https://arxiv.org/abs/2502.00987>)."""

    default_lr: ClassVar[float] = 0.0001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "RandLoraConfig",
        names={"rank": "r", "alpha": "randlora_alpha", "dropout": "randlora_dropout"},
        seed="projection_prng_key",
    )

    rank: Count = 32
    """Rank of each base."""
    alpha: Positive = 640.0
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


class Vblora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="vblora"):
    """Low-rank adapters put together from a bank of vectors (VB-LoRA, <https://arxiv.org/abs/2405.15179>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "VBLoRAConfig", names={"rank": "r", "vectors": "num_vectors", "dropout": "vblora_dropout"}
    )

    rank: Count = 4
    """Rank of each adapter."""
    vectors: Count = 256
    """Vectors in the bank."""
    vector_length: Count = 64
    """Length of each; divides the layers' sizes."""
    topk: Count = 2
    """Vectors that are mixed for each piece."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Fourierft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fourierft"):
    """A few trained frequencies of the weight's change (FourierFT, <https://arxiv.org/abs/2405.03003>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "FourierFTConfig", names={"frequencies": "n_frequency"}, seed="random_loc_seed"
    )

    frequencies: Count = 1000
    """Frequencies of each layer."""
    scaling: Positive = 150.0
    """The change is scaled by this."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Waveft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="waveft"):
    """A few trained wavelets of the weight's change (WaveFT, <https://arxiv.org/abs/2505.12532>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "WaveFTConfig", names={"wavelets": "n_frequency", "family": "wavelet_family"}, seed="random_loc_seed"
    )

    wavelets: Count = 2592
    """Trained coefficients of each layer."""
    scaling: Positive = 25.0
    """The change is scaled by this."""
    family: str = "db1"
    """Family of the wavelets, as PyWavelets names it."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class C3a(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="c3a"):
    """Circular convolutions in blocks (C3A, <https://arxiv.org/abs/2407.19342>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("C3AConfig")

    block_size: Count = 64
    """Size of a block; divides the layers' sizes."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Unilora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="unilora"):
    """One short vector, spread over all low-rank adapters (Uni-LoRA, <https://arxiv.org/abs/2506.00799>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "UniLoraConfig", names={"rank": "r", "length": "theta_d_length", "dropout": "unilora_dropout"}, seed="proj_seed"
    )

    rank: Count = 4
    """Rank of each adapter."""
    length: Count = 256
    """Length of the vector: all that is trained."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Tinylora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="tinylora"):
    """A handful of numbers for each layer (TinyLoRA, <https://arxiv.org/abs/2602.04118>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "TinyLoraConfig", names={"rank": "r", "length": "u", "dropout": "tinylora_dropout"}, seed="projection_seed"
    )

    rank: Count = 2
    """Rank of each adapter."""
    length: Count = 64
    """Trained numbers of each layer."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Frod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="frod"):
    """Joint decompositions of layers of a kind; diagonals and a few other entries are trained (FRoD)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "FrodConfig", names={"dropout": "frod_dropout"}, fixed={"progressbar": False}, seed="projection_prng_key"
    )

    sparse_rate: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Share of entries off the diagonal."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)
