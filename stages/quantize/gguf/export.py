"""A model folder as one GGUF file, and the Modelfile with which Ollama takes it up.

Tensors are read, rounded and written some rows at a time, so memory holds a few megabytes for each thread (a whole
tensor where its rows change places). The result is read back for the gate: what is judged is what the file says.
"""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from postmill.io.errors import USAGE, ConfigError
from postmill.io.gguf_file import GGML_TYPES, GgufFile, GgufWriter, Value, tensor_bytes
from postmill.io.safetensors_file import Weights
from postmill.kernels.quantize.ggml import decode_rows, encode_rows
from postmill.stages.options import tag
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Out
from postmill.stages.quantize.config import Quantize
from postmill.stages.quantize.gguf.architecture import (
    Source,
    architecture_of,
    describe,
    find_sources,
    rope_factors,
)
from postmill.stages.quantize.gguf.mix import BITS, FILE_TYPES, Shape, fitting, type_of
from postmill.stages.quantize.gguf.ollama import modelfile
from postmill.stages.quantize.gguf.vocabulary import describe_vocabulary
from postmill.stages.quantize.layers import Read
from postmill.stages.shared.quantized_weights import TORCH_DTYPES, read_tensor

_PIECE = 1 << 20
"""Weights that a thread has in hand."""
_ROPE = "rope_freqs.weight"
_OWN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


class Exported(NamedTuple):
    """What was written. `kinds`: type of every tensor; `sources`: where it came from."""

    path: Path
    sources: dict[str, Source]
    kinds: dict[str, str]
    metrics: dict[str, Any]

    @property
    def fewest_bits(self) -> int:
        return min(BITS[kind] for kind in self.kinds.values())


def export(cfg: Quantize, folder: Path, config: dict[str, Any], weights: Weights, out: Out) -> Exported:
    """Write `model-SCHEME.gguf` and `Modelfile` into `out.dir`. config: the model's, as transformers completes it."""
    if tag(cfg.method) != "rtn" or cfg.method.clip != "none":
        raise ConfigError(f"--scheme {cfg.scheme}: GGUF's types choose codes by themselves; leave --method out", USAGE)
    if cfg.layout != "compressed-tensors":
        raise ConfigError(f"--layout {cfg.layout}: --scheme {cfg.scheme} makes a GGUF file; leave one out", USAGE)
    architecture = architecture_of(config)
    sources = find_sources(architecture, config, weights)
    kinds = _choose_types(cfg, config, sources, weights)
    factors = rope_factors(config)
    metadata: dict[str, Value] = {
        "general.architecture": architecture,
        "general.type": "model",
        **describe(architecture, config),
        "general.file_type": FILE_TYPES[cfg.scheme],
        "general.quantization_version": 2,
        **describe_vocabulary(folder, config["vocab_size"]),
    }
    path = out.dir / f"model-{cfg.scheme}.gguf"
    layout: dict[str, tuple[str, tuple[int, ...]]] = {_ROPE: ("f32", (len(factors),))} if factors else {}
    layout |= {name: (kinds[name], source.shape) for name, source in sources.items()}
    meter = Meter(len(sources))
    with GgufWriter(path, metadata, layout) as writer, ThreadPoolExecutor(out.threads) as pool:
        if factors:
            writer.write(_ROPE, _bytes(torch.tensor(factors, dtype=torch.float32)))
        for done, (name, source) in enumerate(sources.items(), 1):
            _write(weights, source, writer, name=name, kind=kinds[name], pool=pool)
            Progress.say("quantize", meter.of(done, "tensors"))
    text, has_template = modelfile(folder, path.name, config["max_position_embeddings"])
    (out.dir / "Modelfile").write_text(text)
    if not has_template:
        Progress.warn("quantize", "Modelfile has no TEMPLATE: Ollama has to recognize the template in the file")
    used = sorted(set(kinds.values()), key=lambda kind: BITS[kind])
    metrics = {
        "types": {kind: sum(k == kind for k in kinds.values()) for kind in used},
        "bytes_before": sum(entry.num_bytes for file in weights.files.values() for entry in file.tensors.values()),
        "bytes_after": writer.num_bytes,
    }
    return Exported(path, sources, kinds, metrics)


def _choose_types(
    cfg: Quantize, config: dict[str, Any], sources: dict[str, Source], weights: Weights
) -> dict[str, str]:
    """Type of every tensor: the mix's, or what the last --rule that matches its name in the model says."""
    model = Shape(
        config["num_hidden_layers"],
        config["num_attention_heads"] // (config.get("num_key_value_heads") or config["num_attention_heads"]),
        config.get("num_local_experts") or config.get("num_experts") or 0,
        "output.weight" not in sources,
    )
    kinds = {name: type_of(cfg.scheme, name, source.shape, model) for name, source in sources.items()}
    for text in cfg.rule:
        pattern, _, says = text.rpartition("=")
        if not pattern or says not in (*GGML_TYPES, "keep"):
            raise ConfigError(f"--rule {text}: expected REGEX=TYPE, where TYPE is {', '.join((*GGML_TYPES, 'keep'))}")
        chosen = [name for name, source in sources.items() if re.search(pattern, source.names[0])]
        chosen = [name for name in chosen if len(sources[name].shape) > 1]
        if not chosen:
            raise ConfigError(f"--rule {text}: matches no weight of the model", USAGE)
        for name in chosen:
            own = _OWN.get(weights.entry(sources[name].names[0]).dtype, "f32")
            kinds[name] = own if says == "keep" else fitting(says, sources[name].shape[-1])
    return kinds


def _write(
    weights: Weights, source: Source, writer: GgufWriter, *, name: str, kind: str, pool: ThreadPoolExecutor
) -> None:
    """Round and write one tensor, piece by piece."""
    shape = weights.entry(source.names[0]).shape
    columns = shape[-1]
    rows = shape[0] if len(shape) > 1 else 1
    row_bytes, whole = tensor_bytes(kind, (columns,)), tensor_bytes(kind, shape)

    step = max(1, _PIECE // columns)
    for number, own in enumerate(source.names):
        moved = _pairs_together(read_tensor(weights, own), source.heads).view(rows, columns) if source.heads else None

        def piece(first: int, own: str = own, base: int = number * whole, moved: Tensor | None = moved) -> None:
            last = min(first + step, rows)
            values = _read_rows(weights, own, columns, first, last) if moved is None else moved[first:last]
            with torch.inference_mode():
                writer.write(name, _bytes(encode_rows(values.float(), kind)), base + first * row_bytes)

        for _ in pool.map(piece, range(0, rows, step)):
            pass


def _read_rows(weights: Weights, name: str, columns: int, first: int, last: int) -> Tensor:
    """Rows of a tensor as they are stored."""
    dtype = TORCH_DTYPES[weights.entry(name).dtype]
    raw = bytearray((last - first) * columns * dtype.itemsize)
    weights.file_of(name).read_into(name, first * columns * dtype.itemsize, memoryview(raw))
    return torch.frombuffer(raw, dtype=dtype).view(last - first, columns)


def _pairs_together(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head so that those which are rotated together lie side by side, as llama.cpp wants them."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _pairs_apart(weight: Tensor, heads: int) -> Tensor:
    """The way back."""
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def reader(exported: Exported, file: GgufFile) -> Read:
    """From a tensor's name in the model to the numbers that the file has for it, float32."""
    where = {own: (name, at) for name, source in exported.sources.items() for at, own in enumerate(source.names)}

    def read(own: str) -> Tensor:
        name, at = where[own]
        source, entry = exported.sources[name], file.tensors[name]
        shape = entry.shape[1:] if len(entry.shape) == 3 else entry.shape
        raw = torch.frombuffer(file.read(name, at, len(source.names)), dtype=torch.uint8)
        values = decode_rows(raw.view(*shape[:-1], -1), entry.kind)
        return _pairs_apart(values, source.heads) if source.heads else values

    return read
