"""An adapter in PEFT's layout, read as edits of the base's weights.

PEFT names a factor after the module it changes (`base_model.model.<module>.lora_A.weight`), so the files alone say what
is to be done; the config says how strongly, and whether a method is in play that cannot be merged.
"""

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.safetensors_file import SafetensorsFile
from postmill.stages.merge.arithmetic import DTYPES, F32, Add, Dora, Edit, LowRank, SetRows, to_float32

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTORS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "b_bias",
    ".lora_embedding_A": "embedding_a",
    ".lora_embedding_B": "embedding_b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".token_adapter.trainable_tokens_delta": "tokens",
}
_UNMERGEABLE = {
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "layer_replication": "layer replication",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens), which acts on some tokens only",
    "arrow_config": "Arrow routing",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
}
_BASE_CHANGING = re.compile(r"pissa|olora|corda|loftq|lora_ga|mica")


class Adapter(msgspec.Struct):
    """One adapter: `edits` by tensor of the base, and `replaced`, tensors it holds whole (trained so, or resized)."""

    path: Path
    file: SafetensorsFile
    edits: dict[str, list[Edit]]
    replaced: dict[str, str]
    """Tensor of the base -> its name in `file`."""
    ties: bool
    """Whether the adapter was made with `ensure_weight_tying`: what is done to the embedding holds for the head."""


def load_adapter(path: Path, scale: float) -> Adapter:
    """Read the adapter in `path`; its factors are held in memory as float32, scaled by `scale` when applied.

    Raises ConfigError (2) naming a method that cannot be merged, ArtifactError (65, 66) if it is damaged.
    """
    config = load_json(path / CONFIG)
    _check_method(path, config)
    file = SafetensorsFile(path / WEIGHTS)
    factors: dict[str, dict[str, F32]] = {}
    replaced: dict[str, str] = {}
    for name in file.tensors:
        bare = name.removeprefix(_PREFIX)
        suffix = next((s for s in _FACTORS if bare.endswith(s)), "")
        if suffix:
            factors.setdefault(bare.removesuffix(suffix), {})[_FACTORS[suffix]] = _load(file, name)
        elif ".lora_" in bare:
            raise ArtifactError(f"{file.path}: tensor {name}: of no LoRA method known here; merge with peft instead")
        elif ".original_module." not in bare:  # what modules_to_save kept aside untrained
            replaced[bare.replace(".base_layer.", ".").replace(".modules_to_save.", ".")] = name
    edits: dict[str, list[Edit]] = {}
    for module, parts in factors.items():
        for tensor, edit in _edits(path, module, parts, config, scale):
            edits.setdefault(tensor, []).append(edit)
    return Adapter(path, file, edits, replaced, bool(config.get("ensure_weight_tying")))


def _check_method(path: Path, config: dict[str, Any]) -> None:
    place = path / CONFIG
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{place}: peft_type {kind!r} cannot be merged here, only LORA (with rsLoRA and DoRA)", USAGE)
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


def _load(file: SafetensorsFile, name: str) -> F32:
    entry = file.tensors[name]
    if entry.dtype not in DTYPES:
        raise ArtifactError(f"{file.path}: tensor {name} is {entry.dtype}, expected F32, F16 or BF16")
    return to_float32(file.read(name), entry.dtype).reshape(entry.shape)


def _pattern_value(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that the module's name ends in, as PEFT matches rank_pattern and alpha_pattern."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _edits(
    path: Path, module: str, parts: dict[str, F32], config: dict[str, Any], strength: float
) -> list[tuple[str, Edit]]:
    """The edits that the factors of one module stand for, with the tensor each is of."""
    if "tokens" in parts:
        index = np.array(_token_indices(path, module, config), np.int64)
        if len(index) != len(parts["tokens"]) or strength != 1:
            why = f"{len(parts['tokens'])} rows for {len(index)} token indices" if strength == 1 else "cannot be scaled"
            raise ArtifactError(f"{path / WEIGHTS}: trained tokens of {module}: {why}", BAD_DATA)
        return [(f"{module}.weight", SetRows(index, parts["tokens"]))]
    # the right-hand factor of an embedding is stored transposed, and so is that of GPT-2's Conv1D (fan_in_fan_out)
    embedding = "embedding_a" in parts
    a, b = (parts.get("embedding_a"), parts.get("embedding_b")) if embedding else (parts.get("a"), parts.get("b"))
    if a is None or b is None:
        raise ArtifactError(f"{path / WEIGHTS}: {module} has only {', '.join(sorted(parts))} of its factors", BAD_DATA)
    rank = a.shape[0]
    wanted = _pattern_value(config.get("rank_pattern"), module, config.get("r"))
    a, b = a.reshape(rank, -1), b.reshape(b.shape[0], -1)
    if wanted != rank or b.shape[1] != rank:
        raise ArtifactError(
            f"{path / WEIGHTS}: {module} has factors of rank {rank} and {b.shape[1]}, {CONFIG} says {wanted}", BAD_DATA
        )
    alpha = float(_pattern_value(config.get("alpha_pattern"), module, config.get("lora_alpha")))
    scale = strength * alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    flipped = embedding or bool(config.get("fan_in_fan_out"))
    left, right = (a.T, b.T) if flipped else (b, a)
    low_rank = LowRank(np.ascontiguousarray(left), np.ascontiguousarray(right), scale)
    edit: Edit = low_rank
    if "magnitude" in parts:
        if strength != 1:
            raise ConfigError(f"{path}: a DoRA adapter cannot be scaled; leave its --scale at 1", USAGE)
        edit = Dora(low_rank, parts["magnitude"].reshape(-1), axis=0 if flipped else 1)
    found: list[tuple[str, Edit]] = [(f"{module}.weight", edit)]
    if "b_bias" in parts:
        found.append((f"{module}.bias", Add(parts["b_bias"], scale)))
    return found


def _token_indices(path: Path, module: str, config: dict[str, Any]) -> list[int]:
    indices = config.get("trainable_token_indices")
    if isinstance(indices, dict):
        indices = _pattern_value({re.escape(key): value for key, value in indices.items()}, module, None)
    if not isinstance(indices, list):
        raise ArtifactError(f"{path / CONFIG}: trainable_token_indices does not list the tokens of {module}", BAD_DATA)
    return indices


def check_fits(adapter: Adapter, tensor: str, edit: Edit, shape: tuple[int, ...], place: str) -> None:
    """Raises ArtifactError (78) if an edit's shape is not that of the weight it is for."""
    rows, columns = (shape or (1,))[0], math.prod(shape[1:])
    if isinstance(edit, Dora):
        length = len(edit.magnitude)
        fits = length == (rows if edit.axis == 1 else columns)
        check_fits(adapter, tensor, edit.delta, shape, place)
        found: Any = (length,)
    elif isinstance(edit, LowRank):
        found = (edit.left.shape[0], edit.right.shape[1])
        fits = found == (rows, columns)
    elif isinstance(edit, SetRows):
        found = edit.values.shape
        fits = edit.values.shape[1:] == shape[1:] and bool((edit.index < rows).all()) and bool((edit.index >= 0).all())
    else:
        found = edit.values.shape
        fits = edit.values.size == rows * columns
    if not fits:
        raise ArtifactError(
            f"{adapter.path}: its change of {tensor} has shape {list(found)}, the weight in {place} has {list(shape)};"
            " pass the base it was trained on with -m",
            MISMATCH,
        )
