"""Methods that train entries, blocks, scales or norms of the model's own weights."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from postmill.stages.train.tuners.peft_config import PeftMethod

if TYPE_CHECKING:
    from postmill.stages.train.tuners.interface import Tuner

Count = Annotated[int, Meta(ge=1)]
Dropout = Annotated[float, Meta(ge=0, lt=1)]
Positive = Annotated[float, Meta(gt=0)]


class Ia3(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ia3"):
    """Scales of keys, values and inner activations (IA3, <https://arxiv.org/abs/2205.05638>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("IA3Config", names={"inputs": "feedforward_modules"})

    inputs: list[str] = msgspec.field(default_factory=lambda: ["down_proj"])
    """Modules among the targets whose input is scaled, not their output: the last layer of the MLP."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["k_proj", "v_proj", "down_proj"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Miss(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="miss"):
    """Shards of one small matrix along the weight (MiSS and Bone, <https://arxiv.org/abs/2409.15371>)."""

    default_lr: ClassVar[float] = 0.0001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod(
        "MissConfig", names={"rank": "r", "variant": "init_weights", "mini_rank": "mini_r", "dropout": "miss_dropout"}
    )

    rank: Count = 64
    """Size of a shard."""
    variant: Literal["miss", "bat", "mini"] = "miss"
    """bat: Bone's block-affine form, which the weight itself enters; mini: shards that share columns."""
    mini_rank: Count = 1
    """Columns that shards share, for mini."""
    dropout: Dropout = 0.0
    """Dropout before each adapter."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Shira(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="shira"):
    """A few entries of each weight, chosen at random (SHiRA, <https://arxiv.org/abs/2406.13175>)."""

    default_lr: ClassVar[float] = 0.0001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("ShiraConfig", names={"rank": "r"}, seed="random_seed")

    rank: Count = 32
    """As many entries as LoRA of this rank has numbers."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Supertuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="supertuning"):
    """The largest entries of each weight (<https://arxiv.org/abs/2607.09287>)."""

    default_lr: ClassVar[float] = 0.0001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("SupertuningConfig", names={"largest": "select_top"})

    sparsity: Annotated[float, Meta(gt=0, lt=1)] = 0.99
    """Share of entries that stay."""
    largest: bool = True
    """Train the largest entries, not the smallest."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-linear"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class LnTuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="ln-tuning"):
    """The weights of norms (LN tuning, <https://arxiv.org/abs/2312.11420>)."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("LNTuningConfig")

    targets: list[str] = msgspec.field(default_factory=lambda: ["all-norm"])
    """Names of the norms, or their last parts; all-norm is every norm."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class Beft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="beft"):
    """Biases added to layers that have none (BEFT, <https://arxiv.org/abs/2509.15974>)."""

    default_lr: ClassVar[float] = 0.003
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("BeftConfig")

    targets: list[str] = msgspec.field(default_factory=lambda: ["v_proj"])
    """Names of the modules that get an adapter, or their last parts; all-linear is every linear layer but the head."""
    modules_to_save: list[str] = []
    """Modules that are trained whole and saved with the adapter, like embed_tokens or lm_head."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)


class TrainableTokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="trainable-tokens"):
    """Rows of the embedding, and of a head tied to it."""

    default_lr: ClassVar[float] = 0.001
    makes: ClassVar[str] = "adapter"
    method: ClassVar[PeftMethod] = PeftMethod("TrainableTokensConfig", names={"tokens": "token_indices"})

    tokens: list[int] = []
    """Ids of the tokens whose rows are trained."""
    targets: list[str] = msgspec.field(default_factory=lambda: ["all-embedding"])
    """The embedding; all-embedding finds it."""

    def build(self) -> "Tuner":
        """The functions, see `Tuner`."""
        return self.method.tuner(self)
