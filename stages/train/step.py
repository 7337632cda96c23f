"""The gradient of one step, and the loss of a validation set: sums over bins, divided by what the plan says."""

import hashlib
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from postmill.io.errors import FAILED, StageError
from postmill.io.packed import PackedReader
from postmill.stages.train.batch import Batch, load_batch
from postmill.stages.train.config import Train
from postmill.stages.train.parallel.layout import Layout
from postmill.stages.train.plan import Channels, Step

_CPU_OOM = "DefaultCPUAllocator"


class Gradient(NamedTuple):
    """What `accumulate` measured; the gradient itself is in the parameters."""

    loss: Tensor
    """float64 scalar: the step's loss, over all ranks."""
    micro_losses: list[Tensor]
    """This rank's share of it, by micro-batch."""
    channels: Tensor | None
    """float64 [2, number of channels]: sum of weight * nll, and number of trained tokens."""
    data_seconds: float
    """What was spent waiting for bins."""


def accumulate(
    cfg: Train,
    objective: Any,
    reader: PackedReader,
    step: Step,
    *,
    accelerator: Accelerator,
    layout: Layout,
    channels: Channels | None = None,
) -> Gradient:
    """Add the gradient of `step` to the parameters of `objective` (which may be wrapped for several ranks).

    Raises StageError (1) when memory runs out.
    """
    device, ranks = accelerator.device, accelerator.num_processes
    blocks = step.micro_batches(accelerator.process_index, cfg.micro_bins)
    losses: list[Tensor] = []
    sums = torch.zeros(2, len(channels.names), dtype=torch.float64) if channels else None
    data_seconds = 0.0
    for number, block in enumerate(blocks):
        started = time.perf_counter()
        batch = load_batch(reader, block).to(device)
        data_seconds += time.perf_counter() - started
        torch.manual_seed(seed_of(cfg.seed, step.number, int(block[0])))
        try:
            with layout.gathering(objective, last=number + 1 == len(blocks)):
                share = batch.input_ids_1T.shape[1] / step.tokens if block[0] >= 0 else 0.0
                output = objective(batch, step.normaliser, want_logp=channels is not None, router_share=share)
                # several ranks' gradients are averaged, and what we want is their sum
                accelerator.backward(output.loss * ranks if ranks > 1 else output.loss)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise _out_of_memory(error, step, batch) from error
        losses.append(output.loss.detach())
        if sums is not None and channels is not None and block[0] >= 0:
            sums += _channel_sums(
                output.logp_T.detach(), batch, channels.of_row[_rows(reader, block)], len(channels.names)
            )
    total = torch.stack(losses).double().sum()
    if ranks > 1:
        total = accelerator.reduce(total, "sum")
        sums = None if sums is None else accelerator.reduce(sums.to(device), "sum")
    return Gradient(total, losses, sums, data_seconds)


def seed_of(seed: int, step: int, first_bin: int) -> int:
    """Seed of dropout and noise for one micro-batch: a function of what is computed, not of what came before."""
    digest = hashlib.blake2b(f"{seed}:{step}:{first_bin}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _rows(reader: PackedReader, block: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([reader.rows(int(b)) for b in block if b >= 0])


def _channel_sums(logp_T: Tensor, batch: Batch, channel_of_row: NDArray[np.int64], num_channels: int) -> Tensor:
    lengths = torch.tensor(batch.row_starts).diff()
    channel_T = torch.repeat_interleave(torch.from_numpy(channel_of_row), lengths)
    weights_T = batch.weights_T.cpu().double()
    values_2T = torch.stack([-weights_T * logp_T.cpu().double(), (weights_T != 0).double()])
    return torch.zeros(2, num_channels, dtype=torch.float64).index_add_(1, channel_T, values_2T)


def _out_of_memory(error: Exception, step: Step, batch: Batch) -> Exception:
    """The error to raise: ours if memory ran out, the very same otherwise."""
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and _CPU_OOM not in str(error):
        return error
    what = str(error).strip().split("\n", maxsplit=1)[0]
    return StageError(
        f"step {step.number + 1}: out of memory on {batch.input_ids_1T.shape[1]} tokens ({what}); pass"
        " --gradient-checkpointing, lower --micro-bins, pack with fewer --row-tokens, or use --tuner lora",
        FAILED,
    )


def validate(cfg: Train, objective: Any, reader: PackedReader, normaliser: float, accelerator: Accelerator) -> float:
    """Loss over all bins of `reader`, without noise, dropout or smoothing."""
    objective.eval()
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    # every rank runs as many batches, since shards of a model are gathered by all together
    bins = np.pad(np.arange(len(reader)), (0, -len(reader) % ranks), constant_values=-1)[rank::ranks]
    with torch.no_grad():
        for at in range(0, len(bins), cfg.micro_bins):
            batch = load_batch(reader, bins[at : at + cfg.micro_bins]).to(accelerator.device)
            total += objective(batch, normaliser).loss.double()
    objective.train()
    if ranks > 1:
        total = accelerator.reduce(total, "sum")
    return float(total)
