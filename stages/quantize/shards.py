"""The source's shards written again: quantized weights as their codes and scales, everything else as it is.

Weights are encoded by several threads, each one whole by one thread: memory holds a weight or two for each.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from postmill.io.safetensors_file import INDEX, SafetensorsWriter, Weights, shard_index
from postmill.kernels.quantize.grid import count_clipped
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Out
from postmill.stages.quantize.config import Quantize
from postmill.stages.quantize.formats.table import FORMATS, scale_dtype
from postmill.stages.quantize.plan import Plan
from postmill.stages.shared.quantized_weights import TORCH_DTYPES, read_float32


def write_shards(cfg: Quantize, plan: Plan, weights: Weights, out: Out, *, chosen: Any) -> dict[str, Any]:
    """Write every shard, and their index if there are several. `chosen`: see `Chosen`. Returns the metrics."""
    form = FORMATS[cfg.layout]
    written: dict[str, list[tuple[str, int]]] = {}
    clipped = 0
    with ThreadPoolExecutor(out.threads) as pool:
        for file_name, file in weights.files.items():
            tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
            for name, entry in file.tensors.items():
                module = name.removesuffix(".weight")
                if name.endswith(".weight") and module in plan.targets:
                    tensors |= form.layout(module, plan.targets[module], plan.shapes[module], entry.dtype)
                else:
                    tensors[name] = (entry.dtype, entry.shape)
            with SafetensorsWriter(out.dir / file_name, tensors, file.metadata or {"format": "pt"}) as writer:
                written[file_name] = [(name, writer.num_bytes(name)) for name in tensors]
                modules = [name.removesuffix(".weight") for name in file.tensors]
                modules = [m for m in modules if m in plan.targets and f"{m}.weight" in file.tensors]
                for name in file.tensors:
                    if name.removesuffix(".weight") in modules and name.endswith(".weight"):
                        continue
                    if chosen and name in chosen.replaced:
                        writer.write(name, _bytes(chosen.read_replaced(name)))
                    else:
                        writer.copy(name, file, name)
                clipped += sum(
                    _encode_all(cfg, plan, weights, modules=modules, writer=writer, pool=pool, chosen=chosen)
                )
    if len(written) > 1:
        (out.dir / INDEX).write_bytes(shard_index(written))
    num_quantized = sum(rows * columns for rows, columns in plan.shapes.values())
    num_bytes = sum(size for tensors in written.values() for _, size in tensors)
    return {
        "num_quantized": len(plan.targets),
        "num_kept": len(plan.kept),
        "weights_quantized": num_quantized,
        "clipped": float(f"{clipped / num_quantized:.3g}"),
        "bytes_before": sum(entry.num_bytes for file in weights.files.values() for entry in file.tensors.values()),
        "bytes_after": num_bytes,
    }


def _encode_all(
    cfg: Quantize,
    plan: Plan,
    weights: Weights,
    *,
    modules: list[str],
    writer: SafetensorsWriter,
    pool: ThreadPoolExecutor,
    chosen: Any,
) -> Iterator[int]:
    """Quantize and write the weights of `modules`; yields how many numbers of each were clipped."""

    def one(module: str) -> int:
        if chosen and module in chosen:
            parts, clipped = chosen.read(module)
            for name, tensor in parts.items():
                writer.write(name, _bytes(tensor))
            return int(clipped)
        target = plan.targets[module]
        with torch.inference_mode():
            weight = read_float32(weights, f"{module}.weight")
            dtype = scale_dtype(cfg.layout, TORCH_DTYPES[weights.entry(f"{module}.weight").dtype])
            encoded = cfg.method.encode(weight, target.form, dtype, None)
            for name, tensor in FORMATS[cfg.layout].tensors(module, target, encoded).items():
                writer.write(name, _bytes(tensor))
            return count_clipped(encoded, weight, target.form)

    meter = Meter(len(modules))
    for done, clipped in enumerate(pool.map(one, modules), 1):
        Progress.say("quantize", meter.of(done, "layers"))
        yield clipped


def _bytes(tensor: Any) -> memoryview:
    """A tensor's bytes in memory, in order."""
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
