"""A model's sizes from its config.json, and its exact number of weights from the headers of its files. No weights."""

from pathlib import Path
from typing import Any

import msgspec

from postmill.io.errors import BAD_DATA, ArtifactError
from postmill.io.json_file import load_json
from postmill.io.safetensors_file import DTYPE_BITS, SafetensorsFile

_NORMS_OF_HEADS = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2")


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder. Numbers count weights or dimensions."""

    family: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    """Width of a dense layer's MLP, or of one expert."""
    vocab: int
    tied: bool
    experts: int = 0
    """0 without experts."""
    chosen: int = 0
    """Experts that a token goes to."""
    shared_inner: int = 0
    """Width of what every token goes to beside them."""
    stored_bytes: int = 0
    """Of the weight files; 0 where there are none."""
    counted: int = 0
    """Weights in the files; 0 where there are none."""

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads."""
        return self.key_heads * self.head_size

    @property
    def has_head_norms(self) -> bool:
        """Whether queries and keys are normalised, which keeps more for the backward pass."""
        return self.family in _NORMS_OF_HEADS

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of a block, but experts'."""
        attention = {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
        }
        inner = self.shared_inner if self.experts else self.inner
        if not inner:
            return attention
        return attention | {
            "gate_proj": (self.hidden, inner),
            "up_proj": (self.hidden, inner),
            "down_proj": (inner, self.hidden),
        }

    def block(self, *, active: bool = False) -> int:
        """Weights of a block; `active`: those that one token meets."""
        dense = sum(a * b for a, b in self.linear_layers().values()) + 2 * self.hidden
        experts = (self.chosen if active else self.experts) * 3 * self.hidden * self.inner
        return dense + experts + self.experts * self.hidden

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def weights(self) -> int:
        """All of them, tied ones once."""
        by_formula = self.layers * self.block() + self.embedding * (1 if self.tied else 2) + self.hidden
        return self.counted or by_formula

    @property
    def active(self) -> int:
        """Weights that a token is multiplied by, the head's included."""
        return self.layers * self.block(active=True) + self.embedding


def read_shape(place: Path) -> Shape:
    """The shape of the model in a folder, or of a config.json. Raises ArtifactError (66, 65) if it is no decoder's."""
    folder = place.parent if place.is_file() else place
    config = load_json(place if place.is_file() else place / "config.json")
    text: dict[str, Any] = config.get("text_config") or config
    missing = [n for n in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size") if n not in text]
    if missing:
        raise ArtifactError(f"{place}: config.json has no {missing[0]}; only decoders of text are estimated", BAD_DATA)
    heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
    experts = int(text.get("num_experts") or text.get("num_local_experts") or text.get("n_routed_experts") or 0)
    inner = int(text.get("moe_intermediate_size") or 0) if experts else 0
    counted, stored, has_head = _files(folder)
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", counted and not has_head)))
    return Shape(
        family=str(text.get("model_type") or config.get("model_type") or ""),
        hidden=hidden,
        layers=int(text["num_hidden_layers"]),
        heads=heads,
        key_heads=int(text.get("num_key_value_heads") or heads),
        head_size=int(text.get("head_dim") or hidden // heads),
        inner=inner or int(text.get("intermediate_size") or 4 * hidden),
        vocab=int(text["vocab_size"]),
        tied=tied,
        experts=experts,
        chosen=int(text.get("num_experts_per_tok") or 0),
        shared_inner=int(text.get("shared_expert_intermediate_size") or 0)
        or inner * int(text.get("n_shared_experts") or 0),
        stored_bytes=stored,
        counted=counted,
    )


def _files(folder: Path) -> tuple[int, int, bool]:
    """Weights, their bytes, and whether one of them is a head of its own."""
    weights = num_bytes = 0
    has_head = False
    for path in sorted(folder.glob("*.safetensors")):
        with SafetensorsFile(path) as file:
            for entry in file.tensors.values():
                num_bytes += entry.num_bytes
                weights += entry.num_bytes * 8 // DTYPE_BITS[entry.dtype]
                has_head |= entry.name == "lm_head.weight"
    return weights, num_bytes, has_head
