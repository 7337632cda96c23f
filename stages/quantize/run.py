"""A model's weights in few bits, one tensor at a time, and a comparison with the source before anything is committed.

The plan is made from names and shapes; then each shard of the source is written again: quantized weights as their codes
and scales, everything else copied inside the kernel. Memory holds a weight or two, never a model.
"""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from postmill.io.digest import digest_json
from postmill.io.errors import USAGE, ArtifactError, ConfigError
from postmill.io.json_file import load_json
from postmill.io.model_folder import tokenizer_digest
from postmill.io.safetensors_file import INDEX, SafetensorsWriter, Weights, open_weights, shard_index
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.quantize.config import Quantize
from postmill.stages.quantize.gguf.mix import FILE_TYPES
from postmill.stages.quantize.plan import Plan
from postmill.stages.quantize.sidecars import write_sidecars
from postmill.stages.shared.hf import need
from postmill.stages.shared.parity import REPORT, prompt_ids


def run(cfg: Quantize, inputs: Inputs, out: Out) -> Result:
    """Write the quantized model into `out.dir`. Raises StageError (1) if the gate says no."""
    versions = need("torch", "transformers", "accelerate", remedy="pip install 'postmill[quantize]'")
    import torch

    from postmill.stages.quantize.layers import StreamedModel

    torch.set_num_threads(1)  # rows and tensors are shared among threads instead: equal bits for any number of them
    source = inputs["model"][0].path
    assert source is not None
    if load_json(source / "config.json").get("quantization_config"):
        raise ConfigError(f"{source}: its weights are quantized already; give the model before that", USAGE)
    with ExitStack() as stack:
        weights = stack.enter_context(open_weights(source))
        model = StreamedModel(source)
        _check_names(model.expected(), weights, source)
        make = _make_gguf if cfg.scheme in FILE_TYPES else _make_folder
        metrics, seconds = make(cfg, inputs, out, model=model, weights=weights)
    tokenizer = _tokenizer(source)
    digests = {"tokenizer": tokenizer} if tokenizer else {}
    return Result(metrics=metrics, digests=digests, versions=versions, seconds=seconds)


def _make_folder(
    cfg: Quantize, inputs: Inputs, out: Out, *, model: Any, weights: Weights
) -> tuple[dict[str, Any], dict[str, float]]:
    """A model folder like the source's. Returns metrics and seconds."""
    from postmill.stages.quantize.calibrate import calibrate
    from postmill.stages.quantize.experts import expert_modules, router_modules
    from postmill.stages.quantize.formats.table import FORMATS
    from postmill.stages.quantize.plan import make_plan
    from postmill.stages.shared.quantized_weights import read_float32

    started = time.monotonic()
    experts, routers = expert_modules(weights.where), router_modules(weights.where)
    linears = list(dict.fromkeys([*model.linears, *experts, *routers]))
    inside = {name for name in linears if name.startswith(f"{model.prefix}.") and name not in routers}
    plan = make_plan(cfg, weights, linears, inside, model.tied)
    if any(target.form.symmetric for target in plan.targets.values()) and type(cfg.method).__name__ == "Hqq":
        raise ConfigError("--method hqq moves zero points, and symmetric steps have none; pass --no-symmetric", USAGE)
    seen = _calibration_rows(cfg, inputs, model.folder)
    chosen = calibrate(cfg, plan, list(seen.values()), out, model=model, weights=weights) if seen else None
    metrics = _write_weights(cfg, plan, weights, out, chosen=chosen)
    if chosen:
        if hasattr(cfg.method, "scales"):
            metrics["num_scaled"] = len(chosen.replaced)
            if not chosen.replaced:
                Progress.warn("quantize", "no layer could be scaled: no norm of theirs feeds linear layers alone")
        metrics["calibration"] = {
            "rows": len(seen),
            "tokens": sum(len(ids) for ids in seen.values()),
            "digest": digest_json(sorted(row_id.hex() for row_id in seen)),
        }
        out.after_commit = lambda: shutil.rmtree(out.work, ignore_errors=True)
    write_sidecars(model.folder, out.dir, FORMATS[cfg.layout].quantization_config(plan))
    seconds = {"quantize": time.monotonic() - started}
    if cfg.gate.parity == "on":
        started = time.monotonic()
        outside = any(not name.startswith(f"{model.prefix}.") for name in plan.targets)
        with open_weights(out.dir) as result:
            metrics["parity"] = _gate(
                cfg,
                inputs,
                out,
                model=model,
                weights=weights,
                read=lambda name: read_float32(result, name),
                plan=plan,
                fewest_bits=plan.fewest_bits,
                outside=outside,
                seen=seen,
            )
        seconds["gate"] = time.monotonic() - started
    return metrics, seconds


def _make_gguf(
    cfg: Quantize, inputs: Inputs, out: Out, *, model: Any, weights: Weights
) -> tuple[dict[str, Any], dict[str, float]]:
    """A GGUF file and its Modelfile. Returns metrics and seconds."""
    from postmill.io.gguf_file import GgufFile
    from postmill.stages.quantize.gguf.export import export, reader

    started = time.monotonic()
    if inputs.get("rows"):
        raise ConfigError("--rows: GGUF's types look at no data; leave it out", USAGE)
    exported = export(cfg, model.folder, model.model.config.to_dict(), weights, out)
    metrics, seconds = exported.metrics, {"quantize": time.monotonic() - started}
    if cfg.gate.parity == "on":
        started = time.monotonic()
        with GgufFile(exported.path) as file:
            metrics["parity"] = _gate(
                cfg,
                inputs,
                out,
                model=model,
                weights=weights,
                read=reader(exported, file),
                plan=None,
                fewest_bits=exported.fewest_bits,
                outside=True,
                seen={},
            )
        seconds["gate"] = time.monotonic() - started
    return metrics, seconds


def _calibration_rows(cfg: Quantize, inputs: Inputs, model: Path) -> dict[bytes, list[int]]:
    """Ids by row_id that the method looks at. Raises ConfigError (2) for rows without use and a method without rows."""
    from postmill.stages.quantize.rows import choose_rows

    given, name = inputs.get("rows", []), cfg.method.__struct_config__.tag
    if not cfg.method.needs_rows:
        if given:
            raise ConfigError(f"--rows: --method {name} looks at no data; leave it out, or pass --method gptq", USAGE)
        return {}
    if not given:
        raise ConfigError(f"--method {name} needs --rows: a tokens artifact to be calibrated on", USAGE)
    how = cfg.calibration
    return choose_rows(given[0], how.calibration_tokens, how.calibration_length, _tokenizer(model))


def _tokenizer(model: Path) -> str | None:
    return tokenizer_digest(model) if (model / "tokenizer.json").is_file() else None


def _check_names(expected: list[str], weights: Weights, source: Path) -> None:
    """Raises ConfigError (2) if the folder's tensors are not the class's own, nor its experts one by one."""
    from postmill.stages.quantize.experts import on_disk

    missing = [name for name in expected if not on_disk(name, weights.where)]
    if missing:
        raise ConfigError(
            f"{source}: stores no {missing[0]}, which its class has ({len(missing)} such tensors): models whose weights"
            " are converted when they load cannot be quantized here, but for experts with a matrix each",
            USAGE,
        )


def _write_weights(cfg: Quantize, plan: Plan, weights: Weights, out: Out, *, chosen: Any) -> dict[str, Any]:
    """Write every shard, and their index if there are several. `chosen`: see `Chosen`. Returns the metrics."""
    from postmill.stages.quantize.formats.table import FORMATS

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
    import torch

    from postmill.kernels.quantize.grid import count_clipped
    from postmill.stages.quantize.formats.table import FORMATS, scale_dtype
    from postmill.stages.shared.quantized_weights import TORCH_DTYPES, read_float32

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
    import torch

    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _gate(
    cfg: Quantize,
    inputs: Inputs,
    out: Out,
    *,
    model: Any,
    weights: Weights,
    read: Any,
    plan: Plan | None,
    fewest_bits: int,
    outside: bool,
    seen: dict[bytes, list[int]],
) -> dict[str, Any]:
    """Compare source and result; the report is written into the artifact and returned.

    read: from a tensor's name to its numbers as read back from disk; outside: whether any outside the layers differs;
    seen: rows that calibration has taken.
    """
    from postmill.stages.quantize.experts import by_class
    from postmill.stages.quantize.gate import LONGEST_ROW, compare, judge, limits_of
    from postmill.stages.quantize.layers import StreamedModel
    from postmill.stages.quantize.rows import choose_rows
    from postmill.stages.shared.quantized_weights import read_float32

    chosen: dict[bytes, list[int]] = {}
    if given := inputs["held_out"] or inputs["rows"]:
        try:
            chosen = choose_rows(given[0], cfg.gate.parity_tokens, LONGEST_ROW, _tokenizer(model.folder), seen)
        except ArtifactError:
            if inputs["held_out"]:
                raise
            # calibration has taken all rows
    rows = list(chosen.values())
    if not rows:
        rows = [ids[: cfg.gate.parity_tokens] for ids in prompt_ids(model.folder) if len(ids) > 1]
    report = compare(
        model,
        StreamedModel(model.folder) if outside else model,
        read_source=by_class(lambda name: read_float32(weights, name), weights.where),
        read_result=by_class(read, weights.where),
        plan=plan,
        rows=rows,
        threads=out.threads,
    )
    rounds = plan is not None and any(target.activations for target in plan.targets.values())
    limits = limits_of(
        cfg.gate,
        fewest_bits,
        model.num_parameters,
        judge_ppl=bool(chosen),
        num_tokens=report["num_tokens"],
        rounds_activations=rounds,
    )
    report = {"source": "rows" if chosen else "prompts"} | report | {"limits": limits._asdict()}
    (out.dir / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    judge(report, limits)
    return report
