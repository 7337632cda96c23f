"""A model to a checkpoint of Megatron-Core and back, tensor by tensor, without Megatron.

A checkpoint does not depend on how ranks are laid out: one that was saved under any split is read, and what is written
loads under any. Memory holds one tensor, fused. Afterwards the logits of both sides are compared (`forward`), since a
matrix laid out wrongly still has the right shape.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from postmill.io.errors import FAILED, MISMATCH, NO_INPUT, ArtifactError, StageError
from postmill.io.json_file import load_json
from postmill.io.mcore_folder import LATEST, newest
from postmill.io.model_folder import all_model_files
from postmill.io.safetensors_file import (
    DTYPE_BITS,
    INDEX,
    SafetensorsWriter,
    Weights,
    deal_to_files,
    open_weights,
    shard_index,
)
from postmill.stages.merge.config import Merge
from postmill.stages.merge.mcore.forward import mcore_logits
from postmill.stages.merge.mcore.layout import Piece, Shape, extra_states, join, pieces, read_shape, split
from postmill.stages.merge.mcore.torch_dist import Checkpoint, Writer
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Out
from postmill.stages.shared.hf import load_model
from postmill.stages.shared.parity import REPORT, first_tokens, prompt_ids, rounded

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_TOLERANCE = 1e-4
"""Of the logits' standard deviation. SmolLM2-135M differs by 1e-5 (CPU, float32): two orders of the same sums."""


def to_mcore(cfg: Merge, model: Path, out: Out) -> dict[str, Any]:
    """Write the model as a checkpoint that Megatron loads with `--load` under any split; returns metrics.

    Raises ConfigError (2) for families without a layout, ArtifactError (78) for tensors that have no place in it,
    StageError (1) if the checkpoint computes something else.
    """
    config = load_json(model / "config.json")
    shape = read_shape(config, str(model / "config.json"))
    folder = out.dir / "release"
    folder.mkdir()
    with open_weights(model) as weights:
        present = [piece for piece in pieces(shape) if _is_there(piece, weights, model)]
        extra = set(weights.where) - {part for piece in present for part in piece.parts}
        extra -= {"lm_head.weight"} if shape.tied and _is_copy(weights) else set()
        if extra:
            raise ArtifactError(f"{model}: {min(extra)} has no place in Megatron's layout; not converted", MISMATCH)
        meter = Meter(len(present))
        with Writer(folder) as writer:
            for number, piece in enumerate(present):
                tensors = [_read(weights, part) for part in piece.parts]
                block = join(piece, tensors, shape)
                writer.add(piece.name, piece.counts, piece.at, block)
                if piece.also:
                    writer.add(piece.also, piece.counts, piece.at, block)
                Progress.say("merge", meter.of(number + 1, "tensors"))
            for name, counts, at in extra_states(shape):
                writer.add_empty(name, counts, at)
    (out.dir / LATEST).write_text("release")
    _copy_rest(model, out.dir)
    metrics: dict[str, Any] = {"num_tensors": len(present)}
    return metrics | ({"parity": compare(cfg, Checkpoint(folder), shape, model, out)} if cfg.parity == "rows" else {})


def from_mcore(cfg: Merge, given: Path, like: Path | None, out: Out) -> dict[str, Any]:
    """Write the newest checkpoint in `given` as a Hugging Face model; config and tokenizer are those of `like`, or lie
    beside the checkpoint. Raises as `to_mcore`."""
    beside = like or given
    if not (beside / "config.json").is_file():
        raise ArtifactError(f"{given}: no config.json beside it; pass a model of its shape with -m", NO_INPUT)
    config = load_json(beside / "config.json")
    shape = read_shape(config, str(beside / "config.json"))
    checkpoint = Checkpoint(newest(given))
    placed = [(piece, *place) for piece in pieces(shape) if (place := _place_in(checkpoint, piece))]
    _check_taken(checkpoint, {name for piece, _, _ in placed for name, _ in piece.names})
    layout = {part: entry for place in placed for part, entry in _parts(checkpoint, *place, shape)}
    shards = deal_to_files({name: _num_bytes(*entry) for name, entry in layout.items()})
    with ExitStack() as stack:
        writers: dict[str, SafetensorsWriter] = {}
        for file, names in shards.items():
            entries = {name: layout[name] for name in names}
            writer = stack.enter_context(SafetensorsWriter(out.dir / file, entries, {"format": "pt"}))
            writers |= dict.fromkeys(names, writer)
        meter = Meter(len(placed))
        for number, (piece, name, at) in enumerate(placed):
            tensor = checkpoint.read(name, at)
            if not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{given}: {name} is not finite; nothing was saved")
            for part, values in zip(piece.parts, split(piece, tensor, shape), strict=True):
                data: Any = values.contiguous().view(torch.uint8).numpy().reshape(-1)
                writers[part].write(part, memoryview(data))
            Progress.say("merge", meter.of(number + 1, "tensors"))
    if len(shards) > 1:
        sizes = {file: [(name, _num_bytes(*layout[name])) for name in names] for file, names in shards.items()}
        (out.dir / INDEX).write_bytes(shard_index(sizes))
    _copy_rest(beside, out.dir)
    metrics: dict[str, Any] = {"num_tensors": len(layout)}
    return metrics | ({"parity": compare(cfg, checkpoint, shape, out.dir, out)} if cfg.parity == "rows" else {})


def compare(cfg: Merge, checkpoint: Checkpoint, shape: Shape, model: Path, out: Out) -> dict[str, Any]:
    """Logits of the two on a few prompts, in float32. Raises StageError (1) if they differ by more than rounding."""
    torch.set_num_threads(out.threads)
    rows = first_tokens(prompt_ids(model), cfg.parity_tokens)
    net = load_model(model, "float32")

    def read(name: str, at: tuple[int, ...]) -> Tensor | None:
        place = next((p for p in Piece(name, (), at, ()).names if p[0] in checkpoint.tensors), None)
        return checkpoint.read(*place).float() if place else None

    with torch.inference_mode():
        theirs = torch.cat([net(input_ids=torch.tensor([row])).logits[0] for row in rows])
        ours = torch.cat(mcore_logits(read, shape, net.config, net.model.rotary_emb, rows))
    spread, largest = float(theirs.std()), float((ours - theirs).abs().max())
    report = {"num_tokens": len(theirs), "max_difference": rounded(largest), "deviation": rounded(spread)}
    report["limit"] = rounded(_TOLERANCE * max(spread, 1.0))
    (out.dir / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if not largest <= report["limit"]:
        raise StageError(
            f"parity: logits of the checkpoint differ from the model's by {report['max_difference']}, more than"
            f" {report['limit']}, so nothing was committed; report this, with the model's config.json",
            FAILED,
        )
    return report


def _is_there(piece: Piece, weights: Weights, model: Path) -> bool:
    missing = [part for part in piece.parts if part not in weights.where]
    if not missing:
        return True
    if piece.may_lack and len(missing) == len(piece.parts):
        return False
    raise ArtifactError(f"{model}: has no tensor {missing[0]}, which its config asks for; get it again", MISMATCH)


def _is_copy(weights: Weights) -> bool:
    """Whether a head is stored that is the embedding once more."""
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    return head in weights.where and weights.file_of(head).read(head) == weights.file_of(embedding).read(embedding)


def _read(weights: Weights, name: str) -> Tensor:
    entry = weights.entry(name)
    if entry.dtype not in _DTYPES:
        raise ArtifactError(
            f"{name}: {entry.dtype}, expected {', '.join(_DTYPES)}; convert a model that is not quantized"
        )
    return torch.frombuffer(weights.file_of(name).read(name), dtype=_DTYPES[entry.dtype]).view(entry.shape)


def _place_in(checkpoint: Checkpoint, piece: Piece) -> tuple[str, tuple[int, ...]] | None:
    """What the checkpoint calls it, and where in that it is; None for one that a model may lack. Raises ArtifactError
    (78)."""
    place_in_file = next((place for place in piece.names if place[0] in checkpoint.tensors), None)
    if place_in_file or piece.may_lack:
        return place_in_file
    raise ArtifactError(
        f"{checkpoint.folder}: has no tensor {piece.name}, which the config asks for; pass a model of the same shape"
        " with -m",
        MISMATCH,
    )


def _check_taken(checkpoint: Checkpoint, taken: set[str]) -> None:
    """Raise ArtifactError (78) for weights that would be left behind. Optimizer and random states are no weights."""
    of_model = ("decoder.", "embedding.", "output_layer.", "mtp.", "encoder.", "vision_model.")
    left = sorted(
        n for n in checkpoint.tensors if n.startswith(of_model) and n not in taken and "_extra_state" not in n
    )
    if left:
        raise ArtifactError(
            f"{checkpoint.folder}: {left[0]} has no place in the model of the config; pass another -m", MISMATCH
        )


def _parts(
    checkpoint: Checkpoint, piece: Piece, name: str, at: tuple[int, ...], shape: Shape
) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Each tensor of the model that the piece holds: name, dtype and shape. Raises ArtifactError (78)."""
    stored, depth = checkpoint.tensors[name], len(at)
    size = stored.shape[depth:]
    fits = stored.shape[:depth] == piece.counts[len(piece.counts) - depth :] and stored.dtype in _NAMES
    if piece.how == "qkv":
        fits = fits and size[0] == (shape.heads + 2 * shape.keys) * shape.head_size
    elif piece.how == "vocab":
        fits = fits and size[0] >= shape.vocab
    if not fits:
        raise ArtifactError(
            f"{checkpoint.folder}: {name} is {stored.dtype} of shape {list(stored.shape)}, which the config does not"
            " fit; pass a model of the same shape with -m",
            MISMATCH,
        )
    blocks = split(piece, torch.empty(size, dtype=stored.dtype, device="meta"), shape)
    for part, block in zip(piece.parts, blocks, strict=True):
        yield part, (_NAMES[stored.dtype], tuple(block.shape))


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * DTYPE_BITS[dtype] // 8


def _copy_rest(source: Path, target: Path) -> None:
    """Config, tokenizer and templates."""
    for name, path in all_model_files(source).items():
        if path.suffix not in (".safetensors", ".gguf") and name not in (INDEX, REPORT):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target / name)
