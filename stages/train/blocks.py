"""The micro-batches of a step: loaded, seeded by what they hold, and guarded against memory that runs out."""

import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from postmill.io.errors import FAILED, StageError
from postmill.stages.shared.asked import Ask
from postmill.stages.shared.batch import Batch
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.config import Train
from postmill.stages.train.objectives.interface import Objective
from postmill.stages.train.parallel.layout import Layout
from postmill.stages.train.plan import Step

_CPU_OOM = "DefaultCPUAllocator"


class Blocks:
    """This rank's micro-batches of a step."""

    def __init__(
        self, cfg: Train, source: BatchSource, step: Step, layout: Layout, upcoming: Step | None = None
    ) -> None:
        """upcoming: the step after this one, whose pictures are made ahead."""
        self._cfg, self._source, self._step, self._device = cfg, source, step, layout.device
        self.bins, self.norms = step.micro_batches(layout.data_rank, cfg.batch.micro_bins), step.norms
        self.data_seconds = 0.0
        after = [] if upcoming is None else upcoming.micro_batches(layout.data_rank, cfg.batch.micro_bins)[:1]
        self._next = {id(block): following for block, following in itertools.pairwise([*self.bins, *after])}

    def load(self, block: NDArray[np.int64], *, first_pass: bool = False) -> Batch:
        """The batch of `block`; dropout and noise start from its own seed, in whichever pass."""
        started = time.perf_counter()
        batch = (self._source.load_partners(block) if first_pass else self._source.load(block)).to(self._device)
        if id(block) in self._next:
            self._source.expect(self._next[id(block)])
        self.data_seconds += time.perf_counter() - started
        torch.manual_seed(seed_of(self._cfg.seed, self._step.number, int(block[0])))
        return batch

    def ask(self, objective: Objective, batch: Batch, block: NDArray[np.int64]) -> Ask:
        """What the objective asks, with the batch's share of the routers' loss, at the temperature of the rows."""
        share = batch.input_ids_1T.shape[1] / self._step.tokens if block[0] >= 0 else 0.0
        asked = objective.ask(batch, self._step.norms)
        return asked._replace(router_share=share, temperature=self._source.temperature)

    @contextmanager
    def guarded(self, batch: Batch) -> Iterator[None]:
        """Raises StageError (1) for memory that ran out, anything else as it is."""
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise out_of_memory(error, self._step, batch) from error


def seed_of(seed: int, step: int, first_bin: int) -> int:
    """Seed of dropout and noise for one micro-batch: a function of what is computed, not of what came before."""
    digest = hashlib.blake2b(f"{seed}:{step}:{first_bin}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def out_of_memory(error: Exception, step: Step, batch: Batch) -> Exception:
    """The error to raise: ours if memory ran out, the very same otherwise."""
    if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and _CPU_OOM not in str(error):
        return error
    what = str(error).strip().split("\n", maxsplit=1)[0]
    return StageError(
        f"step {step.number + 1}: out of memory on {batch.input_ids_1T.shape[1]} tokens ({what});"
        " this run goes on from its checkpoint with --gradient-checkpointing, or with --micro-bins below what it is;"
        " another takes less with --tuner lora, or with bins packed with fewer --row-tokens",
        FAILED,
    )
