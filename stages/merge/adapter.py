"""An adapter in PEFT's layout, read as edits of the base's weights.

PEFT names a tensor after the module it changes (`base_model.model.<module>.lora_A.weight`), so the files alone say what
is to be done; the config says how strongly, and by which method. What a method does to a weight is in `methods/`.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from postmill.io.safetensors_file import SafetensorsFile
from postmill.stages.merge.arithmetic import DTYPES, to_float32
from postmill.stages.merge.base import Base, without_wrappers
from postmill.stages.merge.edits import Array, Edit, SetRows, matrix_shape
from postmill.stages.merge.methods.module import Module, find_tensor
from postmill.stages.merge.methods.table import METHODS, NO_WEIGHTS
from postmill.stages.merge.methods.tokens import PART as TOKENS
from postmill.stages.merge.methods.tokens import tokens

_UNMERGEABLE = {
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens), which acts on some tokens only",
    "arrow_config": "Arrow routing",
    "loftq_config": "LoftQ, which began with what quantizing took from the base, so that only the quantized one fits,",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
}
_INTEGERS = {"U8": np.uint8, "I16": np.int16, "I32": np.int32, "I64": np.int64}
_BASE_CHANGING = re.compile(r"pissa|olora|corda|loftq|lora_ga|mica")


class Adapter(msgspec.Struct):
    """One adapter: `edits` by tensor of the base, and `replaced`, tensors it holds whole (trained so, or resized)."""

    path: Path
    file: SafetensorsFile
    config: dict[str, Any]
    edits: dict[str, list[Edit]]
    replaced: dict[str, str]
    """Tensor of the base -> its name in `file`."""
    ties: bool
    """Whether the adapter was made with `ensure_weight_tying`: what is done to the embedding holds for the head."""
    token_tensors: frozenset[str]
    """Tensors under PEFT's token adapter, which keeps embedding and head tied whatever else is saved of them."""


class _Name(msgspec.Struct, frozen=True):
    """A tensor's name taken apart: of `module`, `depth` wrappers deep; `part` is "" for a tensor saved whole."""

    module: str
    depth: int
    part: str
    under_tokens: bool = False


def load_adapter(path: Path, scale: float, base: Base) -> Adapter:
    """Read the adapter in `path`; its factors are held in memory as float32, scaled by `scale` when applied.

    Raises ConfigError (2) naming a method that cannot be merged, ArtifactError: 65, 66 if it is damaged, 78 if it is
    for another base.
    """
    config = load_json(path / ADAPTER_CONFIG)
    method = METHODS[_check_method(path, config)]
    file = SafetensorsFile(path / ADAPTER_WEIGHTS)
    prefixes = (method.prefix, "trainable_tokens_")
    said = _adapter_name(file, prefixes)
    parts: dict[tuple[str, int], dict[str, Array]] = {}
    shared: dict[str, Array] = {}
    replaced: dict[str, str] = {}
    token_tensors: set[str] = set()
    for full in file.tensors:
        name = _take_apart(without_wrappers(full), prefixes, said)
        if name is None:
            continue
        if name.part in method.shared and name.module not in ("", "base_model"):
            continue  # a copy of what all modules share
        if name.part and name.module not in ("", "base_model"):
            parts.setdefault((name.module, name.depth), {})[name.part] = _load(file, full)
        elif name.part:
            shared[name.part] = _load(file, full)
        else:
            tensor = find_tensor(path, name.module, base, config)
            if tensor not in replaced or not name.under_tokens:
                replaced[tensor] = full
            if name.under_tokens:
                token_tensors.add(tensor)
    edits: dict[str, list[Edit]] = {}
    for (module_name, depth), factors in parts.items():
        module = Module(path, module_name, depth, factors, shared, config, base, scale)
        for tensor, edit in (tokens if TOKENS in factors else method.rule)(module):
            edits.setdefault(tensor, []).append(edit)
            if TOKENS in factors:
                token_tensors.add(tensor)
    adapter = Adapter(
        path, file, config, edits, replaced, bool(config.get("ensure_weight_tying")), frozenset(token_tensors)
    )
    if base.tied:
        _follow_embedding(adapter, base)
    return adapter


def _follow_embedding(adapter: Adapter, base: Base) -> None:
    """In a tied model the head's token adapter is the embedding's, unless it has tokens of its own."""
    mine, other = adapter.edits.get(base.head, []), adapter.edits.get(base.embedding, [])
    if base.head in adapter.token_tensors and (not mine or _same_rows(mine, other)):
        adapter.edits.pop(base.head, None)
        file_name = adapter.replaced.pop(base.head, "")
        if file_name:
            adapter.replaced.setdefault(base.embedding, file_name)
        adapter.token_tensors |= {base.embedding}
    if adapter.ties:  # what PEFT stores for the head is what it stores for the embedding
        adapter.edits.pop(base.head, None)
        adapter.replaced.pop(base.head, None)


def _same_rows(one: list[Edit], other: list[Edit]) -> bool:
    return len(one) == len(other) and all(
        isinstance(a, SetRows) and isinstance(b, SetRows) and np.array_equal(a.index, b.index)
        and np.array_equal(a.values, b.values)
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def _check_method(path: Path, config: dict[str, Any]) -> str:
    place = path / ADAPTER_CONFIG
    kind = config.get("peft_type")
    if kind in NO_WEIGHTS:
        raise ConfigError(f"{place}: {kind} cannot be merged: {NO_WEIGHTS[kind]}; serve it as an adapter", USAGE)
    if kind not in METHODS:
        known = ", ".join(METHODS)
        raise ConfigError(
            f"{place}: peft_type {kind!r} is not merged here (merged are {known}); use PEFT's merge_and_unload", USAGE
        )
    for key, what in _UNMERGEABLE.items():
        if config.get(key):
            raise ConfigError(f"{place}: {what} cannot be merged into weights here", USAGE)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and _BASE_CHANGING.match(init.lower()):
        raise ConfigError(
            f"{place}: init_lora_weights {init!r} changes the base when training begins, so it does not fit the stored"
            " base; save it converted to plain LoRA (peft: path_initial_model_for_weight_conversion)",
            USAGE,
        )
    return str(kind)


def _load(file: SafetensorsFile, name: str) -> Array:
    entry = file.tensors[name]
    if entry.dtype in _INTEGERS:
        return np.frombuffer(file.read(name), _INTEGERS[entry.dtype]).astype(np.int64).reshape(entry.shape)
    if entry.dtype not in DTYPES:
        raise ArtifactError(f"{file.path}: tensor {name} is {entry.dtype}, expected F32, F16 or BF16")
    return to_float32(file.read(name), entry.dtype).reshape(entry.shape)


def _adapter_name(file: SafetensorsFile, prefixes: tuple[str, ...]) -> str:
    """The name inside the names (`lora_A.default.weight`), which PEFT takes out and raw state dicts still have.

    Raises ArtifactError (78) if the file holds several adapters.
    """
    names: set[str] = set()
    for name in file.tensors:
        words = name.split(".")
        at = next((n for n, word in enumerate(words) if word.startswith(prefixes)), None)
        if at is not None and words[at + 1 :] and words[at + 1] not in ("weight", "bias"):
            names.add(words[at + 1])
    if len(names) > 1:
        raise ArtifactError(
            f"{file.path}: holds the adapters {', '.join(sorted(names))}; save the one to merge with PEFT's"
            " save_pretrained",
            MISMATCH,
        )
    return names.pop() if names else "default"


def _take_apart(name: str, prefixes: tuple[str, ...], said: str) -> _Name | None:
    """None for what is not part of the change: originals that PEFT kept aside."""
    words = name.split(".")
    if "original_module" in words or words[-1].startswith("trainable_tokens_original"):
        return None
    under_tokens = "token_adapter" in words
    if "modules_to_save" in words:
        at = words.index("modules_to_save")
        del words[at : at + (2 if words[at + 1 : at + 2] == [said] else 1)]
    depth = words.count("base_layer")
    words = [word for word in words if word not in ("base_layer", "token_adapter")]
    start = next((n for n, word in enumerate(words) if word.startswith(prefixes)), None)
    if start is None:
        return _Name(".".join(words), depth, "", under_tokens)
    part = [words[start], *(word for word in words[start + 1 :] if word != said)]
    return _Name(".".join(words[:start]), depth, ".".join(part), under_tokens)


def check_fits(adapter: Adapter, tensor: str, edits: list[Edit], shape: tuple[int, ...], place: str) -> None:
    """Raises ArtifactError (78) if an edit's shape is not that of the weight it is for."""
    for edit in edits:
        if not edit.fits(*matrix_shape(shape, edits)):
            raise ArtifactError(
                f"{adapter.path}: its change of {tensor} has shape {list(edit.shape())}, the weight in {place} has"
                f" {list(shape)}; pass the base it was trained on with -m",
                MISMATCH,
            )
