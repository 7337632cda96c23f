"""A harness asks: a server of ours or one by URL, the harness as a process of its own, its log as tables of ours."""

import contextlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from postmill.io.digest import digest_bytes
from postmill.io.errors import BAD_DATA, UNAVAILABLE, USAGE, ArtifactError, ConfigError, StageError
from postmill.io.schemas import EVAL_ITEMS_V1, EVAL_SCORES_V1
from postmill.io.table import TableWriter
from postmill.stages.eval.config import Eval
from postmill.stages.eval.harness.harness import Harness, Job, Sample
from postmill.stages.eval.harness.table import HARNESSES
from postmill.stages.eval.tasks.metrics import summary
from postmill.stages.progress import Progress
from postmill.stages.protocol import Inputs, Out, Result
from postmill.stages.shared.engine.child import end_child, start_child, tail_of
from postmill.stages.shared.engine.options import Command, Transformers, Wanted, open_engine
from postmill.stages.shared.engine.url import UrlEngine

_VERSION = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


def run_harness(cfg: Eval, inputs: Inputs, out: Out) -> Result:
    """Raises ConfigError (2) for what does not go together; StageError (69) where the harness or the server is not
    there, (65) over --max-errors, (75) when told to stop; ArtifactError (65) for a log that cannot be read."""
    out.stop.graceful = True
    harness, python = HARNESSES[cfg.harness], str(Path(cfg.harness_python or sys.executable).expanduser())
    if any(inputs[port] for port in ("ask", "data", "task_file", "before")):
        raise ConfigError("--harness: it has its own rows; leave --ask, --data, --task-file and --before out", USAGE)
    if bool(inputs["tested"]) == bool(cfg.endpoint.url) or any(one.kind == "eval" for one in inputs["tested"]):
        raise ConfigError("--harness: give a model or an adapter, or --url, one of them", USAGE)
    version = _version(harness, python)
    folder = out.checkpoints / "harness"
    folder.mkdir(parents=True, exist_ok=True)
    with _server(cfg, inputs, out) as engine:
        job = Job(
            cfg=cfg,
            tasks=[name.strip() for name in cfg.task.split(",")],
            url=engine.root,
            model=engine.name,
            key=engine.key or "none",
            folder=folder,
        )
        _run(harness, python, job, out)
        weights = engine.loaded.digest
    try:
        samples = harness.read(job)
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise ArtifactError(
            f"{folder}: the log of {cfg.harness} {version} cannot be read: {type(error).__name__}: {error}", BAD_DATA
        ) from error
    if not samples:
        raise StageError(f"{cfg.harness}: its log has no samples; see {folder / 'said.log'}", BAD_DATA)
    metrics = {"harness": cfg.harness} | _metrics(samples)
    _gate(cfg, samples)
    _write(out, samples)
    out.ledger.keep(len(samples))
    Progress.show(_shown(cfg.harness, metrics))
    out.forget(folder.name)
    return Result(metrics=metrics, versions={cfg.harness: version}, digests={"weights": weights})


def _version(harness: Harness, python: str) -> str:
    """Of the harness. Raises StageError (69) where that Python has none."""
    name = harness.package.partition("[")[0]
    with contextlib.suppress(OSError):
        done = subprocess.run([python, "-c", _VERSION, name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    raise StageError(
        f"{python}: has no {name}; make an environment with `pip install '{harness.package}'`, and pass its Python with"
        " --harness-python",
        UNAVAILABLE,
    )


@contextlib.contextmanager
def _server(cfg: Eval, inputs: Inputs, out: Out) -> Iterator[UrlEngine]:
    """A server with the model: the one at the URL, the engine that was asked for, or `postmill serve`."""
    wanted = Wanted.of(
        [*inputs["model"], *inputs["tested"]], dtype=cfg.dtype, batch_size=cfg.batch_size, threads=out.threads
    )
    engine = cfg.engine
    if isinstance(engine, Transformers):
        words = [sys.executable, "-m", "postmill.cli.main", "serve", "{model}", "--port", "{port}", "--log", "none"]
        words += ["--dtype", cfg.dtype, *(["--adapter", "policy={adapter}"] if len(wanted.folders) > 1 else [])]
        engine = Command(engine_command=shlex.join(words))
    with open_engine(engine, cfg.endpoint, wanted) as opened:
        yield opened


def _run(harness: Harness, python: str, job: Job, out: Out) -> None:
    """The harness, to its end. Raises StageError: (75) when told to stop, (69) when it fails."""
    argv = [python, *harness.command(job), *job.cfg.harness_argument]
    Progress.show(f"harness: {shlex.join(argv)}")
    with (job.folder / "said.log").open("w+b") as said:
        child = start_child(argv, said, harness.env(job))
        try:
            while child.poll() is None:
                if out.stop.requested:
                    raise out.stop.stopped(f"what {job.cfg.harness} keeps of its answers is saved")
                Progress.say("eval", f"{job.cfg.harness} is asking")
                time.sleep(0.1)
        finally:
            end_child(child)
        if child.returncode != 0:
            raise StageError(f"{job.cfg.harness} ended with {child.returncode}{tail_of(said)}", UNAVAILABLE)


def _gate(cfg: Eval, samples: list[Sample]) -> None:
    failed = [sample for sample in samples if sample.error is not None]
    if len(failed) > cfg.max_errors * len(samples):
        raise StageError(
            f"{len(failed)} of {len(samples)} samples have no answer, more than --max-errors {cfg.max_errors:.2%}; the"
            f" first is {failed[0].item_id}: {failed[0].error}",
            BAD_DATA,
        )


def _metrics(samples: list[Sample]) -> dict[str, Any]:
    """Numbers of each task: means over its samples. A harness may sum up otherwise, as by subject; its log says how."""
    tasks = sorted({sample.task for sample in samples})
    found = {task: _summaries([sample for sample in samples if sample.task == task]) for task in tasks}
    return {
        "task": ",".join(tasks),
        "num_items": len(samples),
        "num_errors": sum(sample.error is not None for sample in samples),
        "prompts": digest_bytes("\0".join(sample.prompt for sample in samples).encode()),
        "metrics": _summaries(samples),
    } | ({"groups": found} if len(tasks) > 1 else {})


def _summaries(samples: list[Sample]) -> dict[str, Any]:
    names = sorted({name for sample in samples for name in sample.scores})
    return {name: summary([each.scores[name] for each in samples if name in each.scores]) for name in names}


def _write(out: Out, samples: list[Sample]) -> None:
    several = len({each.task for each in samples}) > 1
    items: list[dict[str, Any]] = [
        {
            "item_id": each.item_id,
            "group": each.task if several else "",
            "prompt": each.prompt,
            "prompt_ids": [],
            "output": None if each.error is not None else each.output,
            "output_ids": [],
            "finish_reason": None if each.error is not None else each.finish,
            "error": each.error,
        }
        for each in samples
    ]
    scores = [
        {
            "item_id": each.item_id,
            "rule": name,
            "expected": each.expected,
            "score": value,
            "ok": value == 1.0 if value in {0.0, 1.0} else None,
            "reason": each.said,
        }
        for each in samples
        for name, value in sorted(each.scores.items())
    ]
    for name, schema, rows in (("items.arrow", EVAL_ITEMS_V1, items), ("scores.arrow", EVAL_SCORES_V1, scores)):
        writer = TableWriter(out.dir / name, schema)
        writer.write(pa.RecordBatch.from_pylist(rows, schema=schema))
        writer.close()


def _shown(name: str, metrics: dict[str, Any]) -> str:
    numbers = [f"{metric} {found['value']:.4f}" for metric, found in metrics["metrics"].items()]
    return f"{name}: {metrics['task']}, {metrics['num_items']} samples: {', '.join(numbers) or 'no numbers'}"
