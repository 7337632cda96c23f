"""A model's weights in few bits, one tensor at a time, and a comparison with the source before anything is committed.

The plan is made from names and shapes; then each shard of the source is written again: quantized weights as their codes
and scales, everything else copied inside the kernel. Memory holds a weight or two, never a model.
"""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from postmill.io.digest import digest_json
from postmill.io.errors import USAGE, ConfigError
from postmill.io.json_file import load_json
from postmill.io.safetensors_file import Weights, open_weights
from postmill.stages.options import tag
from postmill.stages.progress import Progress
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.quantize.config import Quantize
from postmill.stages.quantize.gguf.mix import FILE_TYPES
from postmill.stages.quantize.rows import choose_rows, tokenizer_of
from postmill.stages.quantize.sidecars import write_sidecars
from postmill.stages.shared.hf import need


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
    tokenizer = tokenizer_of(source)
    digests = {"tokenizer": tokenizer} if tokenizer else {}
    return Result(metrics=metrics, digests=digests, versions=versions, seconds=seconds)


def _make_folder(
    cfg: Quantize, inputs: Inputs, out: Out, *, model: Any, weights: Weights
) -> tuple[dict[str, Any], dict[str, float]]:
    """A model folder like the source's. Returns metrics and seconds."""
    from postmill.stages.quantize.calibrate import calibrate
    from postmill.stages.quantize.check import check_result
    from postmill.stages.quantize.experts import expert_modules, router_modules
    from postmill.stages.quantize.formats.table import FORMATS
    from postmill.stages.quantize.plan import make_plan
    from postmill.stages.quantize.shards import write_shards
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
    metrics = write_shards(cfg, plan, weights, out, chosen=chosen)
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
        out.after_commit = lambda: shutil.rmtree(out.checkpoints, ignore_errors=True)
    write_sidecars(model.folder, out.dir, FORMATS[cfg.layout].quantization_config(plan))
    seconds = {"quantize": time.monotonic() - started}
    if cfg.gate.parity == "on":
        started = time.monotonic()
        outside = any(not name.startswith(f"{model.prefix}.") for name in plan.targets)
        with open_weights(out.dir) as result:
            metrics["parity"] = check_result(
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
    from postmill.stages.quantize.check import check_result
    from postmill.stages.quantize.gguf.export import export, reader

    started = time.monotonic()
    if inputs.get("rows"):
        raise ConfigError("--rows: GGUF's types look at no data; leave it out", USAGE)
    exported = export(cfg, model.folder, model.model.config.to_dict(), weights, out)
    metrics, seconds = exported.metrics, {"quantize": time.monotonic() - started}
    if cfg.gate.parity == "on":
        started = time.monotonic()
        with GgufFile(exported.path) as file:
            metrics["parity"] = check_result(
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
    given, name = inputs.get("rows", []), tag(cfg.method)
    if not cfg.method.needs_rows:
        if given:
            raise ConfigError(f"--rows: --method {name} looks at no data; leave it out, or pass --method gptq", USAGE)
        return {}
    if not given:
        raise ConfigError(f"--method {name} needs --rows: a tokens artifact to be calibrated on", USAGE)
    how = cfg.calibration
    return choose_rows(given[0], how.calibration_tokens, how.calibration_length, tokenizer_of(model))


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
