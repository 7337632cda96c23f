"""`postmill track`: what a run has measured, sent to a tracker, while it runs or later.

A program of its own that reads the run's `metrics.jsonl`: a tracker that is slow, down or broken cannot hold up
training, nothing is lost while it is, and every stage that writes such a file can be tracked.
"""

import importlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from postmill.cli.plot import METRICS
from postmill.cli.tool import need, parse
from postmill.io.digest import digest_bytes
from postmill.io.errors import NO_INPUT, UNAVAILABLE, ArtifactError, ConfigError, StageError
from postmill.io.manifest import MANIFEST
from postmill.stages.tables import closest

USAGE = """
Send what a run has measured to a tracker: all of it, or as it comes. Training is not touched.

usage: postmill track RUN --to TRACKER [--follow] [options]

  postmill track out/train --to tensorboard -o logs/ --follow

  RUN           an artifact of train, or the -o of a run that is not finished, or of a loop
  --to          tensorboard (needs no package), wandb, trackio, mlflow, swanlab or aim
  --follow      go on until the run is finished; start it before the run, if you like
  --project P   where the tracker files it (default: postmill)
  --name N      name of the run there (default: that of its folder)
  -o FOLDER     where files go: TensorBoard's, and those of trackers that work without a network (default: logs)

Each package asks for its own key as it always does (WANDB_API_KEY, ...), or works offline by its own switch.
"""
_EVERY_S = 1.0


class Sink(Protocol):
    """Where numbers go."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point of each curve."""

    def close(self) -> None:
        """Send what is left."""


class Target(msgspec.Struct, frozen=True):
    """What a tracker is told of a run."""

    project: str
    name: str
    folder: Path
    identity: str
    """The same for the same run: a second replay goes on where the first one was, where the tracker can."""


class _Calls:
    """A sink of two functions."""

    def __init__(self, add: Callable[[int, Mapping[str, float]], Any], close: Callable[[], Any]) -> None:
        self._add, self._close = add, close

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._add(step, numbers)

    def close(self) -> None:
        self._close()


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(f"--to {name}: {name} is not installed; pip install {name}") from None


def _tensorboard(target: Target) -> Sink:
    from postmill.cli.event_file import EventFile

    return EventFile(target.folder / target.name)


def _wandb(target: Target) -> Sink:
    target.folder.mkdir(parents=True, exist_ok=True)
    run = _package("wandb").init(
        project=target.project, name=target.name, id=target.identity, resume="allow", dir=str(target.folder)
    )
    return _Calls(lambda step, numbers: run.log(dict(numbers), step=step), run.finish)


def _trackio(target: Target) -> Sink:
    trackio = _package("trackio")
    trackio.init(project=target.project, name=target.name, resume="allow")
    return _Calls(lambda step, numbers: trackio.log(dict(numbers), step=step), trackio.finish)


def _mlflow(target: Target) -> Sink:
    mlflow = _package("mlflow")
    mlflow.set_experiment(target.project)
    mlflow.start_run(run_name=target.name, tags={"postmill.run": target.identity})
    return _Calls(lambda step, numbers: mlflow.log_metrics(dict(numbers), step=step), mlflow.end_run)


def _swanlab(target: Target) -> Sink:
    swanlab = _package("swanlab")
    target.folder.mkdir(parents=True, exist_ok=True)
    swanlab.init(
        project=target.project, name=target.name, id=target.identity, resume="allow", log_dir=str(target.folder)
    )
    return _Calls(lambda step, numbers: swanlab.log(dict(numbers), step=step), swanlab.finish)


def _aim(target: Target) -> Sink:
    run = _package("aim").Run(repo=str(target.folder), experiment=target.project)
    run.name = target.name

    def add(step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            run.track(value, name=name, step=step)

    return _Calls(add, run.close)


SINKS: dict[str, Callable[[Target], Sink]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
    "swanlab": _swanlab,
    "aim": _aim,
}
"""Tracker -> what opens it. One more is one function more."""


def run(argv: list[str]) -> int:
    """Send everything, and with `--follow` what comes until the run is finished."""
    args = parse(argv, USAGE, switches=("--follow",), valued=("--to", "--project", "--name", "-o"))
    if args is None:
        return 0
    need(args, 1, 1, USAGE)
    tracker = args.options.get("--to", "")
    if tracker not in SINKS:
        said = f"--to {tracker}: no such tracker{closest(tracker, list(SINKS))}" if tracker else "pass --to TRACKER"
        raise ConfigError(f"{said}; there are {', '.join(SINKS)}")
    output = Path(args.words[0])
    follow = args.has("--follow")
    if not follow and _record(output) is None:
        raise ArtifactError(f"{output}: no {METRICS} there; give a run's output, or pass --follow to wait", NO_INPUT)
    name = args.options.get("--name", output.resolve().name)
    identity = digest_bytes(str(output.resolve()).encode()).removeprefix("blake3:")[:16]
    folder = Path(args.options.get("-o", "logs"))
    sink = _open(tracker, Target(args.options.get("--project", "postmill"), name, folder, identity))
    sent = 0
    try:
        for step, numbers in points(output, follow=follow):
            sink.add(step, numbers)
            sent += 1
    except KeyboardInterrupt:
        pass
    finally:
        sink.close()
    sys.stderr.write(f"track: {sent} steps to {tracker}\n")
    return 0


def _open(tracker: str, target: Target) -> Sink:
    """Raises ConfigError (2) where the package is not installed, StageError (69) with the line it failed with."""
    try:
        return SINKS[tracker](target)
    except (ConfigError, OSError):
        raise
    except Exception as error:  # the package's own, of any kind
        raise StageError(f"--to {tracker}: {str(error).splitlines()[0]}", UNAVAILABLE) from error


def _record(output: Path) -> Path | None:
    """Where a run keeps what it measures: in its checkpoints until it is finished."""
    places = [output / METRICS, output.parent / f"{output.name}.checkpoints" / METRICS]
    return next((place for place in places if place.is_file()), None)


def points(output: Path, *, follow: bool) -> Iterator[tuple[int, dict[str, float]]]:
    """Each step once, with its numbers. A run that goes on from a checkpoint repeats steps, which are left out."""
    last = -1
    while True:
        is_finished = (output / MANIFEST).is_file()  # looked at first: what is read afterwards is then all there is
        record = _record(output)
        for line in record.read_bytes().splitlines(keepends=True) if record else ():
            if not line.endswith(b"\n") and not is_finished:
                break  # it is being written
            said = msgspec.json.decode(line)
            step = int(said.get("step", said.get("round", last + 1)))
            if step > last:
                last = step
                yield step, {name: float(value) for name, value in said.items() if name != "step" and _is_number(value)}
        if is_finished or not follow:
            return
        time.sleep(_EVERY_S)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
