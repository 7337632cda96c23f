"""The base model as an adapter sees it: which tensor a name means, whether the head is tied, what is transposed.

Only headers and config.json are read. An adapter's names come from the model in memory, where wrappers and other
versions of transformers spell them in other ways (`_orig_mod.`, `model.language_model.`, `block_sparse_moe`), so names
are compared by what is left when those are taken off, and only if that names one tensor.
"""

import difflib
import re
from typing import Any

from postmill.io.safetensors_file import Weights

TIED = {
    "embed_tokens.weight": "lm_head.weight",
    "wte.weight": "lm_head.weight",
    "tokens_embed.weight": "lm_head.weight",
    "word_embeddings.weight": "lm_head.weight",
    "embed_in.weight": "lm_head.weight",
    "tok_embeddings.weight": "lm_head.weight",
    "backbone.embeddings.weight": "lm_head.weight",
    "rwkv.embeddings.weight": "head.weight",
    "transformer.w.weight": "lm_head.weight",
}
"""Ends of the names that embeddings have -> the head that is tied to them, as transformers' models say themselves
(`_tied_weights_keys`)."""
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "head.weight", "lm_head.out_proj.weight")
_CONV1D = {
    "gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"),
    "openai-gpt": ("c_attn", "c_proj", "c_fc"),
    "imagegpt": ("c_attn", "c_proj", "c_fc", "q_attn"),
    "decision_transformer": ("c_attn", "c_proj", "c_fc", "q_attn"),
}
"""Modules that keep their weight transposed (transformers' Conv1D), by model type."""
_TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "aria", "aria_text", "openai_privacy_filter", "qwen3_vl_moe"})
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_OUTER = frozenset({"base_model", "model", "language_model", "text_model", "transformer", "module", "backbone", "llm"})
_SPELLINGS = {"block_sparse_moe": "mlp", "embed_out": "lm_head"}


def without_wrappers(name: str) -> str:
    """A tensor's name without what torch.compile, FSDP, checkpointing and PEFT put around modules."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while parts[:1] == ["module"]:
        parts = parts[1:]
    while parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    return ".".join(parts)


def bare(name: str) -> str:
    """What is left of a name without the models around the layers, in today's spelling."""
    parts = name.split(".")
    while len(parts) > 2 and parts[0] in _OUTER:
        parts = parts[1:]
    return ".".join(_SPELLINGS.get(part, part) for part in parts)


class Base:
    """A model's weights and config. `embedding` and `head` are names of tensors or ""; `tied`: the two are one."""

    def __init__(self, weights: Weights, config: dict[str, Any]) -> None:
        self.weights, self.config = weights, config
        inner = config.get("text_config")
        self.text_config: dict[str, Any] = inner if isinstance(inner, dict) else {}
        self.model_types = {config.get("model_type"), self.text_config.get("model_type")}
        self._by_bare: dict[str, list[str]] = {}
        for name in weights.where:
            self._by_bare.setdefault(bare(name), []).append(name)
        self.embedding = next((name for name in weights.where if self._embedding_end(name)), "")
        self.head = next((name for name in weights.where if _ends(name, HEADS)), "")
        # transformers ties unless told otherwise, and text models inside others carry their own word on it
        says = config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings", True))
        self.tied = bool(self.embedding and not self.head and says)
        if self.tied:
            self.head = TIED[self._embedding_end(self.embedding)]

    def _embedding_end(self, name: str) -> str:
        return next((end for end in TIED if name == end or name.endswith(f".{end}")), "")

    def find(self, tensor: str) -> str:
        """The base's name of a tensor that an adapter names, "" if it has none or several could be meant.

        A tied head has a name though the file has no tensor of it.
        """
        if tensor in self.weights.where:
            return tensor
        matches = self._by_bare.get(bare(tensor), [])
        if len(matches) == 1:
            return matches[0]
        return self.head if not matches and self.tied and bare(tensor) == bare(self.head) else ""

    def closest(self, tensor: str) -> str:
        """A tensor of the base whose name is near, "" if none is."""
        near = difflib.get_close_matches(tensor, list(self.weights.where), n=1, cutoff=0.6)
        return near[0] if near else ""

    def shape(self, tensor: str) -> tuple[int, ...]:
        return self.weights.entry(self.embedding if self.tied and tensor == self.head else tensor).shape

    def is_conv1d(self, module: str, rows: int, columns: int) -> bool:
        """Whether a module that maps `columns` numbers to `rows` keeps its weight transposed.

        PEFT asks the module for its type; here its shape tells, and for square ones the family.
        """
        shape = self.shape(f"{module}.weight")
        if len(shape) != 2 or rows == columns:
            return any(module.rpartition(".")[2] in _CONV1D.get(str(kind), ()) for kind in self.model_types)
        return shape == (columns, rows)

    def is_transposed_stack(self) -> bool:
        """Whether a stack of experts is (expert, in, out) where sizes do not tell."""
        return any(kind in _TRANSPOSED_EXPERTS or str(kind).startswith("qwen3_vl_moe") for kind in self.model_types)

    def experts(self, prefix: str) -> int:
        """How many experts have tensors of their own below `prefix` (`...mlp.experts`); 0 for a stack or none."""
        start = f"{bare(prefix)}."
        numbers = {re.match(r"\d+", n[len(start) :]) for n in self._by_bare if n.startswith(start)}
        return len({match[0] for match in numbers if match})


def _ends(name: str, ends: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
