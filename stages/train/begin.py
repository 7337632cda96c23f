"""How a run begins: this process among its ranks, the checkpoint to go on from, and what decides the last bits."""

import os
import platform
from typing import Any

import torch
from accelerate import Accelerator

from postmill.io.errors import MISMATCH, USAGE, ArtifactError, ConfigError
from postmill.io.manifest import Artifact
from postmill.stages.options import changes
from postmill.stages.progress import Progress
from postmill.stages.protocol import Out
from postmill.stages.spec import LAST_BITS
from postmill.stages.train import checkpoint
from postmill.stages.train.checkpoint import Position
from postmill.stages.train.config import Train
from postmill.stages.train.parallel.layout import Layout


def launched(cfg: Train) -> tuple[Accelerator, Layout]:
    """This process among its ranks. Raises ConfigError (2) for a form of parallelism that cannot be had."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    check_launcher(accelerator.distributed_type.value)
    return accelerator, cfg.parallel.layout.build(cfg.parallel, accelerator)


def check_launcher(kind: str) -> None:
    """Raise ConfigError (2) if accelerate's own config wraps the model: the loop would save its shards as the model."""
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        raise ConfigError(
            f"accelerate was told to use {kind}; leave that out of its config and pass --shard fsdp", USAGE
        )


def resume(out: Out, accelerator: Accelerator) -> tuple[Artifact, Position] | None:
    """The checkpoint to go on from. Raises ArtifactError (78) if it, or what another rank was given, does not fit."""
    if accelerator.is_main_process:
        checkpoint.clean(out)
    newest = checkpoint.newest(out)
    if accelerator.num_processes > 1:
        mine = torch.tensor([int(out.key[-14:], 16), newest[1].step if newest else 0], device=accelerator.device)
        seen = accelerator.gather(mine[None])
        if not bool((seen == seen[0]).all()):
            rank = int((seen != seen[0]).any(1).nonzero()[0, 0])
            raise ArtifactError(f"rank {rank} was given other data, options or checkpoints than rank 0", MISMATCH)
    if newest is None and accelerator.is_main_process:
        checkpoint.discard(out)
    if newest:
        Progress.say("train", f"going on after step {newest[1].step} ({newest[0].path.name})", always=True)
    return newest


def fix_numerics(
    cfg: Train, out: Out, accelerator: Accelerator, layout: Layout, resumed: tuple[Artifact, Position] | None
) -> dict[str, Any]:
    """Settle what decides the last bits, as the checkpoint has it if it can be had. Returns `Position`'s fields."""
    device = accelerator.device
    # libraries may have been told to use fewer threads than there are cores
    threads = resumed[1].threads if resumed else min(out.threads, torch.get_num_threads())
    torch.set_num_threads(threads)
    if cfg.compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # a module that answers as an object: its one setting has no declaration
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"
    conditions = {
        "ranks": accelerator.num_processes,
        "threads": threads,
        "torch": str(torch.__version__),
        "device": name,
        "shard": layout.name,
    }
    if resumed:
        changed = [
            f"{k} was {getattr(resumed[1], k)}, is {v}" for k, v in conditions.items() if getattr(resumed[1], k) != v
        ]
        options = changes(Train, resumed[0].manifest.config, out.config, LAST_BITS)
        # what lies on which rank is in `shard`
        changed += [option for option in options if not option.startswith("parallel.")]
        if changed and accelerator.is_main_process:
            Progress.warn("train", f"resumed under other conditions ({'; '.join(changed)}): the last bits may differ")
    return conditions
