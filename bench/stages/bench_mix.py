"""How fast, and in how much memory, do two models of 1 GB become one: against mergekit.

Both read and write bfloat16 safetensors; ours also digests inputs and outputs and flushes them to the disk. mergekit is
in an environment of its own, whose Python MERGEKIT_PYTHON names; without it only ours and `cp` are run. Equality is
checked first, with mergekit computing in float32: numbers may differ by one bfloat16 digit. For ties 1% may differ by
more: changes of bfloat16 models are of few sizes, and which of equal ones are kept mergekit leaves to its sort.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Case, Rival
from qwen3_shaped import FULL, TOY, make_base

from postmill.io.safetensors_file import SafetensorsWriter, open_weights

MERGEKIT = os.environ.get("MERGEKIT_PYTHON", "")
METHODS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "linear": (["--weight", "0.7,0.3"], {"weights": [0.7, 0.3]}),
    "slerp": (["--method", "slerp", "--t", "0.3"], {"t": 0.3}),
    "ties": (["--method", "ties", "--density", "0.5"], {"weights": [1.0, 1.0], "density": 0.5}),
}


def make_tuned(path: Path, base: Path, seed: int) -> None:
    """The base with every number moved a little, in its shards."""
    shutil.copytree(base, path)
    rng = np.random.default_rng(seed)
    with open_weights(base) as weights:
        for name, file in weights.files.items():
            (path / name).unlink()
            layout = {n: (entry.dtype, entry.shape) for n, entry in file.tensors.items()}
            with SafetensorsWriter(path / name, layout, file.metadata) as writer:
                for tensor in layout:
                    wide = np.frombuffer(file.read(tensor), np.uint16).astype(np.uint32) << 16
                    moved = wide.view(np.float32) + rng.standard_normal(len(wide), np.float32) * 0.002
                    writer.write(tensor, memoryview((moved.view(np.uint32) >> 16).astype(np.uint16)).cast("B"))


def recipe(work: Path, method: str, options: dict[str, Any]) -> Path:
    """mergekit's configuration of the same mixture."""
    lines = [f"merge_method: {method}", "dtype: float32", "out_dtype: bfloat16"]
    if method != "linear":
        lines.append(f"base_model: {work / ('a' if method == 'slerp' else 'base')}")
    if "t" in options:
        lines += ["parameters:", f"  t: {options['t']}"]
    lines.append("models:")
    for number, name in enumerate("ab"):
        lines.append(f"  - model: {work / name}")
        if "weights" in options:
            lines += ["    parameters:", f"      weight: {options['weights'][number]}"]
            lines += [f"      density: {options['density']}"] if "density" in options else []
    path = work / f"{method}.yml"
    path.write_text("\n".join(lines) + "\n")
    return path


def share_apart(one: Path, other: Path) -> float:
    """Share of all numbers that differ by more than one bfloat16 digit."""
    apart = total = 0
    with open_weights(one) as left, open_weights(other) as right:
        for name in left.where:
            if name not in right.where:  # mergekit may write a tied head too
                continue
            a, b = (
                (np.frombuffer(side.file_of(name).read(name), np.uint16).astype(np.uint32) << 16).view(np.float32)
                for side in (left, right)
            )
            # what two numbers leave when they cancel is rounding of the larger ones
            near = np.abs(a) * 2**-7 + 1e-6 * np.abs(a).max()
            apart += int((np.abs(a - b) > near).sum())
            total += len(a)
    return apart / total


def cases(smoke: bool) -> Iterator[Case]:
    size = TOY if smoke else FULL
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_base(work / "base", size)
        for seed, name in enumerate("ab"):
            make_tuned(work / name, work / "base", seed + 5)
        amount = sum(file.stat().st_size for file in (work / "base").glob("*.safetensors")) / 1e9
        for method, (flags, options) in METHODS.items():
            yield mix_case(work, method, flags, recipe(work, method, options), amount)


def mix_case(work: Path, method: str, flags: list[str], config: Path, amount: float) -> Case:
    """One method, ours and theirs."""

    def rival(name: str, argv: list[str], note: str) -> Rival:
        out = work / f"{name}-{method}"
        argv = [str(out) if word == "{out}" else word for word in argv]
        return Rival(name, argv, amount, note, prepare=lambda: shutil.rmtree(out, ignore_errors=True))

    models = [str(work / "a"), str(work / "b"), *(["-m", str(work / "base")] if method == "ties" else [])]
    ours = [sys.executable, "-m", "postmill.cli.main", "merge", *models, *flags, "-o", "{out}", "--quiet"]
    rivals = [
        rival("postmill", ours, "digests and flushes to disk too"),
        rival("cp", ["cp", "-r", models[0], "{out}"], ""),
    ]
    if MERGEKIT:
        code = "from mergekit.scripts.run_yaml import main; main()"
        theirs = [MERGEKIT, "-c", code, str(config), "{out}", "--lazy-unpickle"]
        rivals.append(rival("mergekit", theirs, "computes in float32 too"))

    def check() -> dict[str, Any]:
        if not MERGEKIT:
            return {"mergekit": "not installed"}
        for one in (rivals[0], rivals[2]):
            subprocess.run(one.run, check=True, capture_output=True)  # type: ignore[arg-type]
        apart = share_apart(work / f"postmill-{method}", work / f"mergekit-{method}")
        assert apart <= (0.01 if method == "ties" else 0), f"{method}: {apart} of all numbers are not mergekit's"
        return {"share of numbers apart from mergekit's": apart}

    return Case(
        name=f"{method} of two models, {amount:.2f} GB each",
        question=f"--method {method} on two Qwen3-0.6B-shaped bfloat16 models in 4 shards, to files",
        unit="GB/s",
        rivals=rivals,
        check=check,
        repeats=3,
        packages=("numpy", "safetensors"),
    )
