"""Runs a stage: finds and checks its inputs, says which job that is, skips it if it is done, and commits what it made.

Stages know nothing of this; everything that holds for all of them (keys, locks, ledgers, signals, side files) is here.
"""

import contextlib
import importlib
import os
import platform
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec

from postmill.io.commit import Staging
from postmill.io.digest import digest_file
from postmill.io.errors import EXISTS, IO_ERROR, NO_INPUT, USAGE, ArtifactError, ConfigError
from postmill.io.kinds import find_kind
from postmill.io.manifest import (
    MANIFEST,
    SIDE_FILE,
    Artifact,
    InputEntry,
    Manifest,
    content_key,
    list_files,
    load_artifact,
    wrong_kind,
)
from postmill.io.mcore_folder import is_mcore, mcore_digest
from postmill.io.media import changed_media
from postmill.io.model_folder import ADAPTER_CONFIG, model_digest, tokenizer_digest
from postmill.io.nearby import nearby
from postmill.io.table import stdin_stream, stdout_sink
from postmill.stages.kept import Kept
from postmill.stages.options import keyed, to_plain
from postmill.stages.protocol import Input, Inputs, Out, Result, differences
from postmill.stages.spec import Port, Stage
from postmill.stages.tables import load


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to run, as opposed to what to make: none of these changes a byte of the result."""

    force: bool = False
    """Make the output again, whatever is there."""
    replace: bool = False
    """Make it again only if another job has made it."""
    threads: int = 0
    """0 uses every core."""
    max_dropped: float = 1.0
    """Fail if more than this fraction of rows was dropped."""
    shard: tuple[int, int] | None = None
    """Make only part I of N, beside the output."""
    kept: Kept | None = None
    """What this process holds between runs; None keeps nothing."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `status` is `done`, `up-to-date` or `part` (not rank 0, or a shard).

    `path` is unset for a stream.
    """

    status: str
    path: Path | None
    manifest: Manifest
    seconds: float


_MODELS = frozenset({"model", "adapter", "tokenizer"})
"""Kinds that a model reference names: a folder, or a model of a hub."""


class Interrupted(BaseException):
    """A signal ended a stage that had nothing worth saving. `code` is 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def find_inputs(stage: Stage, given: dict[str, list[str]]) -> Inputs:
    """Open and digest every input. Raises ConfigError (2), ArtifactError (65, 66, 77, 78)."""
    inputs: Inputs = {}
    for name, port in stage.inputs.items():
        references = given.get(name, [])
        if port.required and not references:
            flag = f"pass {port.flag} {name.upper()}" if port.flag else "pass it"
            raise ConfigError(f"{stage.name}: no {name} given; {flag}: {port.help}", USAGE)
        if len(references) > 1 and not port.many:
            raise ConfigError(f"{stage.name}: {len(references)} times {name}, expected one", USAGE)
        inputs[name] = [item for reference in references for item in find_input(name, port, reference)]
    if stage.implied:
        inputs = load(stage.implied)(inputs)
    return inputs


def find_input(name: str, port: Port, reference: str) -> list[Input]:
    """What a reference at a port names, with its digest. Raises as `find_inputs`."""
    if port.named:
        label, has_name, reference = reference.partition("=")
        if not has_name or not label or not reference:
            raise ConfigError(f"{port.flag or name} {label}: expected NAME=PATH, as in {_example(name, label)}", USAGE)
        name = f"{name}.{label}"
    if port.resolver:
        resolved: list[Input] = load(port.resolver)(name, reference)
        return resolved
    if reference == "-":
        if not port.stream:
            raise ConfigError(f"{name}: cannot be read from stdin; give a path", USAGE)
        schemas = [schema for kind in port.kinds if (schema := find_kind(kind).stream) is not None]
        stream = stdin_stream(schemas[0])
        if stream.header.kind not in port.kinds:
            raise ArtifactError(f"stdin: a stream of {stream.header.kind}, expected {' or '.join(port.kinds)}", 78)
        return [Input(name, stream.header.kind, stream.header.key, "stdin", stream=stream)]
    source, label = "", Path(reference).name
    path = Path(reference)
    if _MODELS & set(port.kinds):
        from postmill.stages.shared.model_reference import find_model

        model = find_model(reference, tokenizer_only=port.kinds == ("tokenizer",))
        path, label, source = model.path, model.name, model.source
    if port.kinds == ("file",):
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file{nearby(path)}", NO_INPUT)
        return [Input(name, "file", digest_file(path), path.name, path)]
    if port.kinds == ("tokenizer",):
        return [Input(name, "tokenizer", tokenizer_digest(path), label, path, source=source)]
    if _MODELS & set(port.kinds) and not (path / MANIFEST).is_file():
        kind, digest = _foreign(path, mcore="mcore" in port.kinds)
        if kind not in port.kinds:
            raise wrong_kind(path, kind, port.kinds)
        return [Input(name, kind, digest, label, path, source=source)]
    artifact = load_artifact(path, port.kinds)
    return [Input(name, artifact.manifest.kind, artifact.digest, path.name, path, artifact)]


def _foreign(path: Path, *, mcore: bool) -> tuple[str, str]:
    """Kind and digest of a folder that another tool made."""
    if mcore and is_mcore(path):
        return "mcore", mcore_digest(path)
    return ("adapter" if (path / ADAPTER_CONFIG).is_file() else "model"), model_digest(path)


def _example(port: str, said: str) -> str:
    """What to write in place of a path without a name."""
    return f"{ {'scores': 'ref'}.get(port, 'name') }={said or 'path'}"


class Job(NamedTuple):
    """What a stage is to make: equal jobs make equal bytes."""

    key: str
    """Content key: a digest of the stage, its version, and what follows."""
    config: dict[str, Any]
    """Every option, resolved."""
    inputs: list[InputEntry]


def job_of(stage: Stage, config: Any, inputs: Inputs) -> Job:
    """The job of a stage with this config and these inputs."""
    resolved = to_plain(config)
    entries = [item.entry() for items in inputs.values() for item in items]
    return Job(content_key(stage.name, stage.version, keyed(stage.config, resolved), entries), resolved, entries)


def run_stage(stage: Stage, config: Any, given: dict[str, list[str]], output: Path | None, options: Options) -> Outcome:
    """Make `output`, or a stream on stdout if it is None.

    Raises ConfigError, ArtifactError, StageError with the exit code to leave with; OSError becomes code 74.
    """
    started = time.monotonic()
    if options.shard and (not stage.shards or output is None):
        raise ConfigError(f"{stage.name}: --shard: parts are of a tokenize with -o DIR", USAGE)
    if output is None and not stage.stream:
        raise ConfigError(f"{stage.name}: no output; pass -o DIR", USAGE)
    inputs = find_inputs(stage, given)
    job = job_of(stage, config, inputs)
    done = None if output is None or options.force else _done_before(stage, job, output, options)
    if done:
        for stream in (item.stream for items in inputs.values() for item in items if item.stream):
            for _ in stream:  # the stage before us must not die of a closed pipe
                pass
        return Outcome(status="up-to-date", path=output, manifest=done.manifest, seconds=time.monotonic() - started)

    rank = int(os.environ.get("RANK", "0")) if stage.ranks else 0
    is_part = rank > 0 or options.shard is not None
    with contextlib.ExitStack() as stack:
        staging = stack.enter_context(Staging(output)) if output is not None and not is_part else None
        sink = stack.enter_context(stdout_sink()) if output is None else None
        out = Out(stage, job.key, output, sink, staging.path if staging else None)
        out.rank, out.threads = rank, options.threads or len(os.sched_getaffinity(0))
        out.force, out.inputs, out.config = options.force or options.replace, job.inputs, job.config
        out.kind, out.shard, out.kept = stage.kind(config), options.shard, options.kept
        stack.enter_context(_signals(out))
        run = importlib.import_module(f"{stage.package or f'postmill.stages.{stage.name}'}.run").run
        try:
            result: Result = run(config, inputs, out)
            counts = out.ledger.finish(options.max_dropped) if out.ledger.is_used else None
            manifest = Manifest(
                kind=stage.kind(config),
                stage=stage.name,
                stage_version=stage.version,
                key=job.key,
                config=job.config,
                inputs=job.inputs,
                files=list_files(staging.path, out.digests()) if staging else [],
                counts=counts,
                metrics=result.metrics,
                digests=result.digests,
                versions=result.versions,
            )
            seconds = time.monotonic() - started
            if is_part:
                return Outcome(status="part", path=output, manifest=manifest, seconds=seconds)
            if staging is None:
                assert out.stream_writer is not None
                out.stream_writer.finish_stream(manifest, out.ledger.to_ipc(), _side_record(inputs))
            else:
                _write_side_file(staging.path, inputs, result, seconds)
                staging.commit(manifest, replace=out.force)
                if out.after_commit:
                    out.after_commit()
        except BrokenPipeError:
            raise
        except OSError as error:
            place = error.filename or output or "stdout"
            raise ArtifactError(
                f"{place}: {error.strerror or error}; free space or check the disk", IO_ERROR
            ) from error
    return Outcome(status="done", path=output, manifest=manifest, seconds=seconds)


def run_service(stage: Stage, config: Any, given: dict[str, list[str]], *, threads: int = 0) -> None:
    """Run a stage that makes no artifact. Raises what `find_inputs` and the stage raise."""
    inputs = find_inputs(stage, given)
    out = Out(stage, "", None, None, None)
    out.threads = threads or len(os.sched_getaffinity(0))
    importlib.import_module(f"{stage.package or f'postmill.stages.{stage.name}'}.run").run(config, inputs, out)


def _done_before(stage: Stage, job: Job, output: Path, options: Options) -> Artifact | None:
    """The artifact at `output` if it is of this very job. Raises ArtifactError (73) for another job, unless it is to be
    replaced."""
    if not output.exists() and not output.is_symlink():
        return None
    if not (output / MANIFEST).is_file():
        raise ArtifactError(f"{output}: exists and is no artifact; choose another -o", EXISTS)
    artifact = load_artifact(output)
    other = why_other(stage, job, artifact)
    if other is None:
        return artifact
    if options.replace:
        return None
    raise ArtifactError(
        f"{output}: exists, made by {artifact.manifest.stage} from other inputs or options"
        f" ({other}); choose another -o, or pass --replace",
        EXISTS,
    )


def why_other(stage: Stage, job: Job, artifact: Artifact) -> str | None:
    """In what an artifact differs from what the job would make; None if it is that."""
    if artifact.manifest.key != job.key:
        return differences(stage, artifact.manifest, job.config, job.inputs)
    return changed_media(artifact)


def _paths(inputs: Inputs) -> dict[str, list[str]]:
    return {
        name: [str(item.path.resolve()) if item.path else item.name for item in items] for name, items in inputs.items()
    }


def _side_record(inputs: Inputs) -> bytes:
    """The side file of a stream: places only, since equal runs should write equal streams."""
    return msgspec.json.format(msgspec.json.encode({"inputs": _paths(inputs)})) + b"\n"


def _write_side_file(folder: Path, inputs: Inputs, result: Result, seconds: float) -> None:
    record = {
        "inputs": _paths(inputs),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {"total": round(seconds, 3)} | {k: round(v, 3) for k, v in result.seconds.items()},
        "host": platform.node(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    (folder / SIDE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")


@contextlib.contextmanager
def _signals(out: Out) -> Iterator[None]:
    """SIGTERM and SIGINT ask a graceful stage to stop, and end any other; a second signal ends every stage."""

    def handle(number: int, frame: FrameType | None) -> None:
        if not out.stop.graceful or out.stop.requested:
            raise Interrupted(number)
        out.stop.signal = number

    # in another thread of somebody's program, signals are that program's business
    is_ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if is_ours else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
