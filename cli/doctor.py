"""`postmill doctor`: what this machine and this installation can do, and what is left over in a folder."""

import importlib.util
import os
import platform
import sys
from pathlib import Path

from postmill.cli.tool import need, parse
from postmill.io.commit import lock_beside, unlock_beside
from postmill.io.errors import ArtifactError

USAGE = """
Say what is installed and what this machine can do. With a folder, list what killed runs left there.

usage: postmill doctor [FOLDER] [--clean]

  --clean   remove the leftovers of dead runs
"""

_PARTS = {
    "postmill._native": "tokenize, pack (Rust)",
    "postmill._C": "CPU kernels (C++)",
    "torch": "train, score, rollout, quantize, eval",
    "transformers": "train, score, rollout, quantize, eval",
    "peft": "adapters",
    "accelerate": "devices and ranks",
    "triton": "GPU kernels",
    "flash_attn": "variable-length attention on GPU",
    "liger_kernel": "train --liger on GPU",
    "huggingface_hub": "hf: references",
    "modelscope_hub": "ms: references",
}


def leftovers(folder: Path) -> list[Path]:
    """Temporary siblings in `folder` whose writer is dead: their lock can be taken."""
    dead = []
    for path in sorted(folder.glob(".*.tmp-*")):
        target = folder / path.name[1:].rpartition(".tmp-")[0]
        try:
            lock = lock_beside(target)
        except ArtifactError:
            continue
        unlock_beside(target, lock)
        dead.append(path)
    return dead


def run(argv: list[str]) -> int:
    """Print the report; always 0."""
    args = parse(argv, USAGE, switches=("--clean",))
    if args is None:
        return 0
    need(args, 0, 1, USAGE)
    lines = [f"python      {platform.python_version()} on {platform.machine()}, {len(os.sched_getaffinity(0))} cores"]
    for name, use in _PARTS.items():
        there = importlib.util.find_spec(name) is not None
        lines.append(f"{name.removeprefix('postmill.'):<16}{'yes' if there else 'no':<4}{use}")
    sys.stdout.write("\n".join(lines) + "\n")
    if args.words:
        for path in leftovers(Path(args.words[0])):
            sys.stdout.write(f"left over   {path}\n")
            if args.has("--clean"):
                import shutil

                shutil.rmtree(path)
    return 0
