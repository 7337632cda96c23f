"""Weights to disk in the layouts every other tool loads, read back before anyone may rely on them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from postmill.io.errors import DIVERGED, INTERNAL, StageError
from postmill.io.json_file import load_json, write_json
from postmill.io.model_folder import tokenizer_files
from postmill.stages.progress import Progress
from postmill.stages.train.parallel.layout import Layout

_TOKENIZER_EXTRAS = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
_GENERATION = "generation_config.json"


def whole_weights(
    tensors: Mapping[str, Tensor], layout: Layout, *, keep: bool, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The tensors that a tuner saves, whole, on the CPU. Empty unless `keep`.

    Every rank has to call it. `dtype` converts floating-point tensors; tensors that share memory still do.
    """
    memo: dict[int, Tensor] = {}
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in memo:
            Progress.beat()
            whole = layout.whole(tensor)
            memo[id(tensor)] = whole.to("cpu", dtype if whole.is_floating_point() else None) if keep else whole[:0]
        weights[name] = memo[id(tensor)]
    return weights if keep else {}


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """One safetensors file."""
    save_file(tensors, path, metadata={"format": "pt"})


def check_saved(folder: Path) -> None:
    """Read all weights of `folder` back. Raises StageError: (79) a number is not finite, (70) empty or all zero."""
    largest = 0.0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                tensor = file.get_tensor(name)
                if tensor.numel() == 0:
                    raise StageError(f"{path.name}: {name} is empty; this is a bug of ours", INTERNAL)
                if tensor.is_floating_point():
                    peak = float(tensor.abs().max())
                    # max of NaN is NaN, so one number tells both
                    if not peak < float("inf"):
                        raise StageError(f"{path.name}: {name} is not finite; nothing was saved", DIVERGED)
                    largest = max(largest, peak)
    if largest == 0:
        raise StageError(f"{folder.name}: all weights are zero; this is a bug of ours", INTERNAL)


def copy_tokenizer(base: Path, folder: Path) -> None:
    """The base model's tokenizer and chat template, and its generation config if there is none yet."""
    if not (base / "tokenizer.json").is_file():
        return
    extras = {name: base / name for name in _TOKENIZER_EXTRAS if (base / name).is_file()}
    for name, path in (tokenizer_files(base) | extras).items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / name)
    if (base / _GENERATION).is_file() and not (folder / _GENERATION).exists():
        shutil.copyfile(base / _GENERATION, folder / _GENERATION)


def write_stop_ids(folder: Path, stop_ids: list[int]) -> None:
    """Make generation stop at the trained closing tokens, besides where it stopped before."""
    path = folder / _GENERATION
    config = load_json(path) if path.is_file() else {}
    before = config.get("eos_token_id")
    known = before if isinstance(before, list) else [] if before is None else [before]
    config["eos_token_id"] = stop_ids + [i for i in known if i not in stop_ids]
    write_json(path, config)


def choose_stop_ids(counts: dict[int, int], base: Path) -> list[int]:
    """Closing tokens that end a turn: special tokens of the tokenizer, most frequent first.

    A closing that is ordinary text (a newline) is no stop id: it would end replies in their middle.
    """
    path = base / "tokenizer.json"
    if not path.is_file():
        return []
    added = load_json(path).get("added_tokens") or []
    special = {token["id"] for token in added if token.get("special")}
    return sorted((i for i in counts if i in special), key=lambda i: (-counts[i], i))
