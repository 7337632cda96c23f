"""Models into one: each tensor read from all of them block by block, mixed in float32, rounded once.

The models must have the same tensors, of the same shapes, under any spelling of their names; nothing is skipped or cut.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from postmill.io.errors import BAD_DATA, MISMATCH, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.json_file import load_json
from postmill.io.safetensors_file import (
    INDEX,
    SafetensorsFile,
    SafetensorsWriter,
    deal_to_files,
    open_weights,
    shard_index,
)
from postmill.stages.merge.arithmetic import DTYPES, from_float32, single_threaded_blas
from postmill.stages.merge.base import Base
from postmill.stages.merge.config import Merge
from postmill.stages.merge.mix.group import Group
from postmill.stages.merge.mix.layers import num_layers, stack_layers, stacked_config
from postmill.stages.merge.mix.methods import RULES
from postmill.stages.merge.mix.settings import depth_of, parse_rule, settings_of, values_of
from postmill.stages.merge.mix.sidecars import check_tokenizers, write_model_files
from postmill.stages.merge.mix.slices import Slice, parse_slice
from postmill.stages.options import tag
from postmill.stages.progress import Progress
from postmill.stages.protocol import Out

_DTYPE_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
Source = tuple[SafetensorsFile, str]


class Model(msgspec.Struct, frozen=True):
    """One of the models, open."""

    path: Path
    base: Base

    def source(self, tensor: str) -> Source | None:
        """Where the tensor lies; a tied head lies where the embedding does."""
        name = self.base.find(tensor)
        if self.base.tied and name == self.base.head:
            name = self.base.embedding
        return (self.base.weights.file_of(name), name) if name else None


def mix_models(cfg: Merge, paths: list[Path], base_path: Path | None, out: Out) -> dict[str, Any]:
    """Write the mixture into `out.dir` and return its metrics.

    Raises ConfigError (2) for a call that does not fit the method, ArtifactError (78) for models that are not alike.
    """
    _check_call(cfg, paths, base_path)
    check_tokenizers([*paths, *([base_path] if base_path else [])])
    with ExitStack() as stack:
        models = [_open(path, stack) for path in paths]
        base = _open(base_path, stack) if base_path else None
        slices = [parse_slice(text) for text in getattr(cfg.method, "layers", [])]
        plan = _stack(slices, models) if slices else _plan([*models, *([base] if base else [])])
        config = stacked_config(slices, [model.base for model in models]) if slices else models[0].base.config
        _write(cfg, plan, models[:1] if slices else models, config, out)
        untied = any(model.base.tied for model in models) and models[0].base.head in plan
        dtype = None if cfg.dtype == "auto" else cfg.dtype
        stop_ids = write_model_files(paths, out.dir, config, untied=untied, dtype=dtype)
    num_mixed = sum(_is_mixed(sources) for sources in plan.values())
    return {
        "method": tag(cfg.method),
        "num_tensors": len(plan),
        "num_mixed": num_mixed,
        "untied": untied,
        "stop_ids_added": stop_ids,
    }


def _check_call(cfg: Merge, paths: list[Path], base: Path | None) -> None:
    name = f"--method {tag(cfg.method)}"
    least, most = cfg.method.takes
    if hasattr(cfg.method, "layers") and not cfg.method.layers and len(paths) > 1:
        raise ConfigError(f"{name}: takes 1 model, got {len(paths)}; say which layers of each with --layers", USAGE)
    if not least <= len(paths) <= most:
        wanted = str(least) if least == most else f"{least} or more"
        raise ConfigError(
            f"{name}: takes {wanted} models, got {len(paths)}; give {'more' if len(paths) < least else 'fewer'}", USAGE
        )
    if cfg.method.needs_base and base is None:
        raise ConfigError(f"{name}: needs the model that the others were tuned from; pass it with -m", USAGE)
    if base is not None and not cfg.method.needs_base:
        raise ConfigError(f"{name}: takes no base; drop -m, or give that model as another input", USAGE)
    for option, setting in settings_of(cfg.method).items():
        if len(setting.anchors) not in (1, len(paths)):
            count = len(setting.anchors)
            raise ConfigError(
                f"--{option}: {count} values for {len(paths)} models; give one each, or one for all", USAGE
            )


def _open(path: Path, stack: ExitStack) -> Model:
    config = load_json(path / "config.json")
    if config.get("quantization_config"):
        raise ConfigError(f"{path}: its weights are quantized; merge the model before it was quantized", USAGE)
    return Model(path, Base(stack.enter_context(open_weights(path)), config))


def _plan(models: list[Model]) -> dict[str, list[Source]]:
    """Tensor of the first model -> where it lies in each. Raises ArtifactError (78) naming what does not match."""
    first = models[0]
    names = list(first.base.weights.where)
    if first.base.tied and any(not model.base.tied for model in models):
        names.insert(names.index(first.base.embedding) + 1, first.base.head)
    plan: dict[str, list[Source]] = {}
    for name in names:
        sources = []
        for model in models:
            source = model.source(name)
            if source is None:
                raise ArtifactError(
                    f"{model.path}: has no tensor {name}, which {first.path} has; they are not alike", MISMATCH
                )
            sources.append(source)
        _check_alike(name, sources)
        plan[name] = sources
    for model in models[1:]:
        known = {
            source for sources in plan.values() for file, source in sources if file in model.base.weights.files.values()
        }
        extra = next((name for name in model.base.weights.where if name not in known), "")
        if extra:
            raise ArtifactError(
                f"{first.path}: has no tensor {extra}, which {model.path} has; they are not alike", MISMATCH
            )
    return plan


def _stack(slices: list[Slice], models: list[Model]) -> dict[str, list[Source]]:
    """Tensor of the result -> where its layer lies."""
    bases = [model.base for model in models]
    stacked = stack_layers(slices, bases, [str(model.path) for model in models])
    return {name: [(bases[n].weights.file_of(inner), inner)] for name, (n, inner) in stacked.items()}


def _check_alike(name: str, sources: list[Source]) -> None:
    entries = [file.tensors[inner] for file, inner in sources]
    for (file, _), entry in zip(sources, entries, strict=True):
        if entry.shape != entries[0].shape:
            raise ArtifactError(
                f"{file.path}: {name} has shape {list(entry.shape)}, in {sources[0][0].path} {list(entries[0].shape)};"
                " models of other sizes or vocabularies cannot be mixed",
                MISMATCH,
            )
    if not _is_mixed(sources):
        whole = sources[0][0].read(sources[0][1])
        for file, inner in sources[1:]:
            if file.tensors[inner].dtype != entries[0].dtype or file.read(inner) != whole:
                raise ArtifactError(
                    f"{file.path}: {name} is {entries[0].dtype}, which is not mixed, and differs", MISMATCH
                )


def _is_mixed(sources: list[Source]) -> bool:
    return all(file.tensors[name].dtype in DTYPES for file, name in sources)


def _write(cfg: Merge, plan: dict[str, list[Source]], models: list[Model], config: dict[str, Any], out: Out) -> None:
    """Write every shard of the first model's layout, and their index if there are several."""
    settings, rules = settings_of(cfg.method), [parse_rule(text) for text in cfg.rule]
    rule = RULES.get(type(cfg.method)) or cfg.method.rule
    first, num_models = models[0], len(models)
    depth = num_layers(Base(first.base.weights, config))
    where = first.base.weights.where
    shards: dict[str, list[str]] = {}
    if first.base.config == config:
        for name in plan:
            shards.setdefault(where.get(name, where.get(first.base.embedding, "")), []).append(name)
    else:  # layers of several models: shards of their own
        shards = deal_to_files({name: file.tensors[inner].num_bytes for name, ((file, inner), *_) in plan.items()})
    written: dict[str, list[tuple[str, int]]] = {}
    done = 0
    with single_threaded_blas(), ThreadPoolExecutor(out.threads) as pool:
        for shard, names in shards.items():
            layout = {name: _layout(plan[name], _DTYPE_NAMES.get(cfg.dtype)) for name in names}
            metadata = next(iter(first.base.weights.files.values())).metadata or {"format": "pt"}
            with SafetensorsWriter(out.dir / shard, layout, metadata) as writer:
                for name in names:
                    if _is_mixed(plan[name]):
                        sources = plan[name]
                        base = sources[num_models] if len(sources) > num_models else None
                        group = Group(name, sources[:num_models], base, pool)
                        values = values_of(name, num_models, depth_of(name, depth), settings, rules)
                        _write_mixed(group, rule(group, cfg.method, values), writer, layout[name][0])
                    else:
                        writer.copy(name, *plan[name][0])
                    done += 1
                    Progress.say("merge", f"{done} of {len(plan)} tensors")
                written[shard] = [(name, writer.num_bytes(name)) for name in names]
    if len(shards) > 1:
        (out.dir / INDEX).write_bytes(shard_index(written))


def _layout(sources: list[Source], dtype: str | None) -> tuple[str, tuple[int, ...]]:
    entry = sources[0][0].tensors[sources[0][1]]
    return (dtype if dtype and _is_mixed(sources) else entry.dtype), entry.shape


def _write_mixed(group: Group, mix: Any, writer: SafetensorsWriter, dtype: str) -> None:
    size = DTYPES[dtype].itemsize

    def one(span: tuple[int, int]) -> None:
        mixed = mix(group.block(span))
        if not np.isfinite(mixed).all():
            raise StageError(
                f"{group.target}: not finite after mixing; a model is damaged, or the weights are too large", BAD_DATA
            )
        data = from_float32(np.ascontiguousarray(mixed), dtype)
        if dtype == "F16" and not np.isfinite(np.frombuffer(data, np.float16)).all():
            raise StageError(f"{group.target}: too large for float16 after mixing; pass --dtype bfloat16", BAD_DATA)
        writer.write(group.target, data, span[0] * size)

    for _ in group.pool.map(one, group.spans()):
        pass
