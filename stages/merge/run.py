"""Adapters into the weights of their model, or models into one (`mix/`).

The plan is made from headers; then each shard is written in its place, untouched tensors copied inside the kernel,
changed ones computed in blocks. Memory holds the adapters' factors and a few blocks, never a whole weight. Nothing here
needs torch; only the parity check does.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from postmill.io.errors import USAGE, ConfigError, StageError
from postmill.io.json_file import load_json
from postmill.io.model_folder import tokenizer_digest
from postmill.io.safetensors_file import INDEX, SafetensorsWriter, Weights, open_weights, shard_index
from postmill.stages.merge.adapter import Adapter, load_adapter
from postmill.stages.merge.arithmetic import EditedTensor, single_threaded_blas, write_edited
from postmill.stages.merge.base import Base
from postmill.stages.merge.base_name import named_base, unlike_name
from postmill.stages.merge.config import Merge
from postmill.stages.merge.mix.options import Linear
from postmill.stages.merge.mix.run import mix_models
from postmill.stages.merge.plan import Plan, make_plan
from postmill.stages.merge.sidecars import check_tokenizer, write_sidecars
from postmill.stages.progress import Meter, Progress
from postmill.stages.protocol import Input, Inputs, Out, Result
from postmill.stages.shared.hf import need

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def run(cfg: Merge, inputs: Inputs, out: Out) -> Result:
    """Write the merged model into `out.dir`. Raises StageError (1) if it does not compute what base and adapters do."""
    paths = [_path(item) for item in inputs["parts"]]
    kinds = {item.kind for item in inputs["parts"]}
    if len(kinds) > 1:
        raise ConfigError("merge: adapters and models; merge the adapters into their base first", USAGE)
    if cfg.to == "mcore" or kinds == {"mcore"}:
        return _convert(cfg, paths, kinds.pop(), inputs, out)
    if kinds == {"model"}:
        return _mix(cfg, paths, inputs, out)
    if cfg.rule or cfg.method != Linear():
        raise ConfigError("--method and --rule are for models, these are adapters; scale them with --scale", USAGE)
    base = _path(inputs["model"][0])
    scales = cfg.scale or [1.0] * len(paths)
    if len(scales) != len(paths):
        raise ConfigError(f"--scale: {len(scales)} of them for {len(paths)} adapters; give one each", USAGE)
    config = load_json(base / "config.json")
    if config.get("quantization_config"):
        original = next((named for path in paths if (named := named_base(path))), "the model it was made from")
        raise ConfigError(
            f"{base}: its weights are quantized; pass the model before it was quantized ({original}) with -m", USAGE
        )
    if inputs.get("onto"):
        Progress.warn(
            "merge",
            f"{base} is not checked against what the adapter was trained on; if that is another model, the result"
            " differs from base and adapter by what the two bases differ",
        )
    for path in paths:
        other = unlike_name(path, base, inputs["model"][0].source, config)
        if other:
            Progress.warn(
                "merge", f"{path} says it was trained on {other}, which {base} is not by its name; its shapes fit"
            )
    started = time.monotonic()
    with ExitStack() as stack:
        weights = stack.enter_context(open_weights(base))
        model = Base(weights, config)
        adapters = [load_adapter(path, scale, model) for path, scale in zip(paths, scales, strict=True)]
        for adapter in adapters:
            stack.enter_context(adapter.file)
        plan = make_plan(model, adapters, _DTYPE_NAMES.get(cfg.dtype))
        check_tokenizer(paths, plan)
        num_changed = _write_weights(plan, weights, out)
    stop_ids = write_sidecars(base, paths, out.dir, plan, cfg.dtype if cfg.dtype != "auto" else None)
    seconds = {"merge": time.monotonic() - started}
    metrics = _metrics(plan, adapters, stop_ids, num_changed)
    versions = {"numpy": np.__version__}
    if cfg.parity == "rows":
        from postmill.stages.merge.parity import check_parity

        started = time.monotonic()
        metrics["parity"], more = check_parity(
            cfg,
            base,
            list(zip(paths, scales, strict=True)),
            inputs["rows"],
            out,
            merged_dtype=_changed_dtype(plan),
        )
        seconds["parity"] = time.monotonic() - started
        versions |= more
    digests = {"tokenizer": tokenizer_digest(out.dir)} if (out.dir / "tokenizer.json").is_file() else {}
    return Result(metrics=metrics, digests=digests, versions=versions, seconds=seconds)


def _convert(cfg: Merge, paths: list[Path], kind: str, inputs: Inputs, out: Out) -> Result:
    """A model to a checkpoint of Megatron, or back."""
    if len(paths) > 1 or kind == "adapter" or (kind == "mcore" and cfg.to == "mcore"):
        raise ConfigError(
            f"--to {cfg.to}: converts one {'model' if cfg.to == 'mcore' else 'checkpoint'}, got {len(paths)} of kind"
            f" {kind}; merge into one model first",
            USAGE,
        )
    if cfg.scale or cfg.rule or cfg.method != Linear() or cfg.dtype != "auto":
        raise ConfigError(
            "--scale, --method, --rule, --dtype: weights are converted as they are; leave them out", USAGE
        )
    versions = need("torch", "transformers", remedy="pip install 'postmill[train]'")
    from postmill.stages.merge.mcore.run import from_mcore, to_mcore

    like = _path(inputs["model"][0]) if inputs.get("model") else None
    started = time.monotonic()
    metrics = to_mcore(cfg, paths[0], out) if cfg.to == "mcore" else from_mcore(cfg, paths[0], like, out)
    digests = {"tokenizer": tokenizer_digest(out.dir)} if (out.dir / "tokenizer.json").is_file() else {}
    return Result(metrics=metrics, digests=digests, versions=versions, seconds={"merge": time.monotonic() - started})


def _mix(cfg: Merge, paths: list[Path], inputs: Inputs, out: Out) -> Result:
    """Models into one."""
    if cfg.scale:
        raise ConfigError("--scale: is for adapters; give models their shares with --weight", USAGE)
    started = time.monotonic()
    base = _path(inputs["model"][0]) if inputs.get("model") else None
    metrics = mix_models(cfg, paths, base, out)
    digests = {"tokenizer": tokenizer_digest(out.dir)} if (out.dir / "tokenizer.json").is_file() else {}
    seconds = {"merge": time.monotonic() - started}
    return Result(metrics=metrics, digests=digests, versions={"numpy": np.__version__}, seconds=seconds)


def _changed_dtype(plan: Plan) -> str:
    """The coarsest dtype among changed weights."""
    changed = {s.dtype for shard in plan.shards.values() for s in shard.values() if not s.is_copy}
    return next((dtype for dtype in ("BF16", "F16", "F32") if dtype in changed), "F32")


def _path(item: Input) -> Path:
    assert item.path is not None
    return item.path


def _write_weights(plan: Plan, weights: Weights, out: Out) -> int:
    """Write every shard, and their index if there are several. Returns how many tensors have other numbers now."""
    written: dict[str, list[tuple[str, int]]] = {}
    done = num_changed = 0
    meter = Meter(sum(len(sources) for sources in plan.shards.values()))
    with single_threaded_blas(), ThreadPoolExecutor(out.threads) as pool:
        for file, sources in plan.shards.items():
            layout = {name: (source.dtype, source.shape) for name, source in sources.items()}
            metadata = weights.files[file].metadata or {"format": "pt"}
            with SafetensorsWriter(out.dir / file, layout, metadata) as writer:
                written[file] = [(name, writer.num_bytes(name)) for name in sources]
                for name, source in sources.items():
                    if source.is_copy:
                        writer.copy(name, source.file, source.name)
                    else:
                        tensor = EditedTensor(source.file, source.name, source.edits, name)
                        num_changed += write_edited(tensor, writer, source.dtype, pool)
                    done += 1
                    Progress.say("merge", meter.of(done, "tensors"))
    if len(plan.shards) > 1:
        (out.dir / INDEX).write_bytes(shard_index(written))
    return num_changed


def _metrics(plan: Plan, adapters: list[Adapter], stop_ids: list[int], num_changed: int) -> dict[str, Any]:
    sources = [source for shard in plan.shards.values() for source in shard.values()]
    if not any(source.edits for source in sources) and not any(a.replaced for a in adapters):
        names = ", ".join(str(adapter.path) for adapter in adapters)
        raise StageError(f"{names}: changes no weight; check that it was trained")
    num_replaced = sum(len(adapter.replaced) for adapter in adapters)
    if not num_changed and not num_replaced:
        Progress.warn(
            "merge",
            "no weight changed: the adapters are untrained (all their changes are zero), or smaller than the last digit"
            " of the weights, which --dtype float32 would keep",
        )
    metrics: dict[str, Any] = {
        "num_tensors": len(sources),
        "num_edited": sum(bool(source.edits) for source in sources),
        "num_changed": num_changed,
        "num_replaced": num_replaced,
        "untied": plan.untied,
        "stop_ids_added": stop_ids,
    }
    if plan.vocab:
        metrics |= {"vocab_before": plan.vocab[0], "vocab_after": plan.vocab[1]}
    return metrics
