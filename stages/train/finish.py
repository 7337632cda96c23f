"""The artifact of a run that took all its steps."""

from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from postmill.io.json_file import write_json
from postmill.io.model_folder import TRAINING
from postmill.io.packed import PackedReader
from postmill.stages.protocol import Input, Out, Result
from postmill.stages.shared.base_model import source_of, trained_stop_ids
from postmill.stages.shared.sentence_transformers import write_sentence_transformers
from postmill.stages.train import checkpoint, curve, model, save
from postmill.stages.train.checkpoint import METRICS, SAMPLES, TIMING
from postmill.stages.train.config import Train
from postmill.stages.train.plan import Steps
from postmill.stages.train.run_state import RunState
from postmill.stages.train.survey import closing_ids
from postmill.stages.train.tuners.interface import Tuner


def finish(
    cfg: Train,
    reader: PackedReader,
    base: Input,
    out: Out,
    *,
    tuner: Tuner,
    net: Any,
    sizes: dict[str, int],
    weights: dict[str, Tensor],
    run: RunState,
    steps: Steps,
    state: dict[str, Tensor],
    start: Input | None,
) -> Result:
    """Write weights, tokenizer, what the model learned to stop with, and the record of the run.

    sizes: numbers in each parameter by name, before ranks shared them.
    """
    assert base.path is not None
    record, conditions = run.record, run.conditions
    num_trainable = sum(sizes[name] for name, p in net.named_parameters() if p.requires_grad)
    num_parameters = sum(sizes.values())
    is_model = cfg.tuner.makes == "model"
    if is_model:
        net.config.dtype = model.stored_dtype(cfg, base.path)
    tuner.save(net, weights, out.dir, base.name)
    save.check_saved(out.dir)
    if state:
        (out.dir / checkpoint.KEPT_STATE).parent.mkdir()
        save.save_tensors(state, out.dir / checkpoint.KEPT_STATE)
    save.copy_tokenizer(base.path, out.dir)
    head = cfg.objective.needs.head
    stop_ids = save.choose_stop_ids(closing_ids(reader), base.path) if head.kind == "lm" else []
    if start is not None and start.path is not None:
        stop_ids += [i for i in trained_stop_ids(start.path) if i not in stop_ids]
    if is_model and stop_ids:
        save.write_stop_ids(out.dir, stop_ids)
    # an adapter's base does not say which head belongs to it
    said: dict[str, Any] = {} if head.kind == "lm" else {"head": head}
    source = source_of(base)
    said |= {"base_source": source} if source else {}
    write_json(out.dir / TRAINING, {"base_digest": base.digest, "stop_ids": stop_ids} | said)
    if head.kind == "pool":
        write_sentence_transformers(out.dir, base.path, head.pooling, net.config.get_text_config().hidden_size)
    (out.dir / METRICS).write_bytes(record.raw())
    (out.dir / TIMING).write_bytes(record.timing())
    curve.write_curve(out.dir, record.lines)
    if run.rows is not None:
        run.rows.write(out, reader)
    if run.samples is not None:
        (out.dir / SAMPLES).write_bytes(run.samples.kept())
    if not cfg.checkpoints.keep_checkpoints:
        out.after_commit = lambda: checkpoint.tidy(out, cfg.checkpoints.keep_best)
    return Result(
        metrics={
            **{key: record.lines[-1][key] for key in record.lines[-1] if key == "loss" or key.startswith("valid_")},
            "steps": record.lines[-1]["step"],
            "epochs": round(record.lines[-1]["step"] / steps.per_epoch, 6),
            "tokens": sum(line["tokens"] for line in record.lines),
            "trained_tokens": sum(line["trained_tokens"] for line in record.lines),
            "normalize": cfg.objective.needs.measures[0],
            "trainable_parameters": num_trainable,
            "parameters": num_parameters,
            "dtype": str(model.compute_dtype(cfg, next(net.parameters()).device)).removeprefix("torch."),
            **{key: conditions[key] for key in ("ranks", "threads", "device")},
        },
        digests=reader.artifact.manifest.digests | {"base": base.digest},
        versions=_versions(cfg, tuner),
    )


def _versions(cfg: Train, tuner: Tuner) -> dict[str, str]:
    import transformers

    versions = {"torch": str(torch.__version__), "transformers": transformers.__version__}
    versions |= {package: metadata.version(package) for package in tuner.packages}
    if cfg.compute.liger:
        versions["liger-kernel"] = metadata.version("liger-kernel")
    return versions
