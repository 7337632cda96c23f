"""Checkpoints: artifacts beside the output that hold all a run needs to go on, bit for bit.

What that is: trained weights, AdamW's moments, and the number of steps done. The order of bins, the learning rate,
dropout and noise are pure functions of the seed and the step, so there is no other state that could be lost.
"""

import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file
from torch import Tensor

from postmill.io.commit import Staging, remove_artifact
from postmill.io.errors import DIVERGED, MISMATCH, ArtifactError, StageError
from postmill.io.json_file import NOT_JSON, write_json
from postmill.io.manifest import Artifact, Manifest, list_files, load_artifact, verify_files
from postmill.stages.progress import Progress
from postmill.stages.protocol import Out, differences
from postmill.stages.train.optimizer import Learner, restore_state
from postmill.stages.train.save import check_saved, save_tensors
from postmill.stages.train.tuners.interface import STATE as TUNER_STATE
from postmill.stages.train.tuners.interface import Tuner

KEPT_STATE = "state/optimizer.safetensors"
"""Where a result keeps its optimizer's state: out of sight of readers that take every file of weights."""
OWN = "start.safetensors"
"""Log-probs of the weights the run started from."""
OPTIMIZER, STATE, METRICS, TIMING = "optimizer.safetensors", "state.json", "metrics.jsonl", "timing.jsonl"
SAMPLES = "samples.jsonl"
_NAME = re.compile(r"step-(\d{8,})")


class Position(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a run is. `step` counts updates done; the rest tells under what numbers stay the same to the last bit."""

    step: int
    ranks: int
    threads: int
    torch: str
    device: str
    shard: str = "none"


def step_path(out: Out, step: int) -> Path:
    """Where the checkpoint after `step` updates lies."""
    return out.checkpoints / f"step-{step:08d}"


def save(
    out: Out,
    position: Position,
    net: Any,
    *,
    tuner: Tuner,
    weights: dict[str, Tensor],
    state: dict[str, Tensor],
    own: dict[str, Tensor],
    records: Mapping[str, bytes],
    base: str,
    quality: float | None,
) -> Path:
    """Commit a checkpoint of whole tensors.

    Raises StageError (79) if a number in it is not finite; then nothing is committed.
    """
    path = step_path(out, position.step)
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise StageError(f"{name}: optimizer state is not finite; nothing was saved", DIVERGED)
    with Staging(path) as staging:
        tuner.save(net, weights, staging.path, base)
        check_saved(staging.path)
        of_tuner = {name: tensor.contiguous() for name, tensor in tuner.state(net).items()}
        if of_tuner:
            save_tensors(of_tuner, staging.path / TUNER_STATE)
        save_tensors(state, staging.path / OPTIMIZER)
        if own:
            save_tensors(own, staging.path / OWN)
        write_json(staging.path / STATE, position)
        for name, content in records.items():
            (staging.path / name).write_bytes(content)
        manifest = Manifest(
            kind="checkpoint",
            stage=out.stage.name,
            stage_version=out.stage.version,
            key=out.key,
            config=out.config,
            inputs=out.inputs,
            files=list_files(staging.path),
            metrics={"step": position.step} | ({} if quality is None else {"quality": quality}),
        )
        staging.commit(manifest, replace=True)
    return path


def newest(out: Out) -> tuple[Artifact, Position] | None:
    """The newest whole checkpoint of this very work; damaged ones are passed over with a warning.

    Raises ArtifactError (78) if the newest whole one is of other work, unless the run is forced.
    """
    for path in _all(out):
        try:
            artifact = load_artifact(path, ("checkpoint",))
            faults = verify_files(artifact)
            if faults:
                raise ArtifactError(faults[0])
            position = msgspec.json.decode(artifact.file(STATE).read_bytes(), type=Position)
        except (ArtifactError, *NOT_JSON) as error:
            Progress.warn("train", f"checkpoint {path.name} is damaged and passed over ({error})")
            continue
        if artifact.manifest.key == out.key:
            return artifact, position
        if out.force:
            return None
        why = differences(out.stage, artifact.manifest, out.config, out.inputs)
        raise ArtifactError(
            f"{path}: is of another run: {why}; give the same"
            " data and options, choose another -o, or pass --replace to start over",
            MISMATCH,
        )
    return None


def restore_optimizer(folder: Path | None, learner: Learner) -> None:
    """Put back the moments of a checkpoint, or of a result that kept them. Raises ArtifactError (78) if they are of
    other parameters."""
    for name in (OPTIMIZER, KEPT_STATE):
        if folder is not None and (folder / name).is_file():
            restore_state(learner, load_file(folder / name), str(folder))


def rotate(out: Out, keep_last: int, keep_best: int) -> None:
    """Remove all but the newest `keep_last` whole checkpoints and the `keep_best` with the best validations.

    Damaged ones are left for people to look at.
    """
    whole: list[Artifact] = []
    for path in _all(out):
        try:
            whole.append(load_artifact(path, ("checkpoint",)))
        except ArtifactError:
            continue
    whole.sort(key=lambda a: -int(a.manifest.metrics["step"]))
    kept = {a.path for a in whole[:keep_last]}
    measured = [a for a in whole if "quality" in a.manifest.metrics]
    measured.sort(key=lambda a: (-a.manifest.metrics["quality"], a.manifest.metrics["step"]))
    kept |= {a.path for a in measured[:keep_best]}
    for artifact in whole:
        if artifact.path not in kept:
            remove_artifact(artifact.path)


def tidy(out: Out, keep_best: int) -> None:
    """After the run: keep only the best checkpoints, and no folder where nothing is left to keep."""
    clean(out)
    rotate(out, 0, keep_best)
    if not _all(out):
        for name in (METRICS, TIMING, SAMPLES):  # the artifact has them
            (out.checkpoints / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a report of a diverged step may be there
            out.checkpoints.rmdir()


def clean(out: Out) -> None:
    """Remove what killed runs left half written or half removed. Only for the holder of the output's lock."""
    for dead in out.checkpoints.glob(".step-*.tmp-*"):
        shutil.rmtree(dead, ignore_errors=True)


def discard(out: Out) -> None:
    """Remove all checkpoints: a forced run starts over."""
    for path in _all(out):
        remove_artifact(path)


def _all(out: Out) -> list[Path]:
    """Folders named as checkpoints, newest step first."""
    if not out.checkpoints.is_dir():
        return []
    found = [(int(match[1]), path) for path in out.checkpoints.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]
