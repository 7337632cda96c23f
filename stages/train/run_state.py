"""What a run must not lose: how it saves itself, stops when asked to, and ends when a step is not finite.

Every method is called by all ranks together. Only rank 0 writes, and no rank leaves before it has: a launcher ends the
others as soon as one is gone.
"""

import math
import signal
from typing import Any

import msgspec
import torch
from accelerate import Accelerator

from postmill.io.errors import DIVERGED, StageError
from postmill.io.json_file import write_json
from postmill.io.packed import PackedReader
from postmill.stages.protocol import Out
from postmill.stages.train import checkpoint, save
from postmill.stages.train.checkpoint import METRICS, SAMPLES, Position
from postmill.stages.train.config import Train
from postmill.stages.train.model import causal_lm, compute_dtype
from postmill.stages.train.optimizer import Learner, averaged, state_tensors
from postmill.stages.train.own_scores import OwnScores
from postmill.stages.train.plan import Step
from postmill.stages.train.profiling import Profiler
from postmill.stages.train.record import Record
from postmill.stages.train.row_losses import KEPT as ROW_LOSSES
from postmill.stages.train.row_losses import RowLosses
from postmill.stages.train.samples import Samples
from postmill.stages.train.step import Gradient
from postmill.stages.train.tuners.interface import Tuner
from postmill.stages.train.verdict import is_among_best, quality, watch


def is_due(number: int, every: int) -> bool:
    """Whether something that happens every so many steps happens after step `number`, counted from 0."""
    return every > 0 and (number + 1) % every == 0


class RunState(msgspec.Struct, kw_only=True):
    """A run under way. `conditions` is what `Position` has besides the step."""

    cfg: Train
    tuner: Tuner
    out: Out
    learner: Learner
    record: Record
    conditions: dict[str, Any]
    base: str
    accelerator: Accelerator
    own: dict[str, OwnScores]
    """Numbers of the start that later steps compare with."""
    rows: RowLosses | None
    samples: Samples | None
    profiler: Profiler
    saved: int
    """Step of the newest checkpoint; 0 without one."""

    def watch(self, number: int, gradient: Gradient, *, last: bool) -> None:
        """After step `number`, counted from 0: what is written down of it besides its numbers."""
        self.profiler.after(number, last=last)
        if self.rows is not None and gradient.spans is not None:
            self.rows.add(number + 1, gradient.spans)
        if self.samples is not None and (last or is_due(number, self.cfg.measure.sample_every)):
            net = causal_lm(self.learner.net)
            with averaged(self.learner):
                self.samples.take(net, number + 1, compute_dtype(self.cfg, self.accelerator.device))

    def keep(self, *, step: int) -> None:
        """After `step` updates: commit a checkpoint if one is due, or if the validation was among the best.

        Raises StageError (79) if the loss has run away.
        """
        lines, kept = self.record.lines, self.cfg.checkpoints
        watch(lines, self.cfg.measure, self.saved)
        if is_due(step - 1, kept.save_every) or is_among_best(lines, self.cfg.measure.best, kept.keep_best):
            self.checkpoint(step=step)

    def checkpoint(self, *, step: int) -> None:
        """Commit a checkpoint and remove those that need not be kept."""
        net, layout, is_main = self.learner.net, self.learner.layout, self.out.rank == 0
        weights = save.whole_weights(self.tuner.tensors(net), layout, keep=is_main)
        state = state_tensors(self.learner, keep=is_main)
        if is_main:
            position = Position(step=step, **self.conditions)
            checkpoint.save(
                self.out,
                position,
                net,
                tuner=self.tuner,
                weights=weights,
                state=state,
                own={role: torch.from_numpy(scores.logp) for role, scores in self.own.items()},
                records=self.records(),
                base=self.base,
                quality=quality(self.record.lines[-1], self.cfg.measure.best) if self.record.lines else None,
            )
            checkpoint.rotate(self.out, self.cfg.checkpoints.keep_last, self.cfg.checkpoints.keep_best)
        self.saved = step

    def records(self) -> dict[str, bytes]:
        """What the run has written down so far, by file."""
        found = {METRICS: self.record.raw()}
        if self.rows is not None:
            found[ROW_LOSSES] = self.rows.kept()
        if self.samples is not None:
            found[SAMPLES] = self.samples.kept()
        return found

    def stopped(self, *, step: int) -> StageError:
        """Save where we are; returns the error to leave with (75)."""
        if not self.out.stop.requested:  # another rank was told
            self.out.stop.signal = signal.SIGTERM
        if step == 0:
            return self.out.stop.stopped("no step was taken yet")
        if step != self.saved:
            self.checkpoint(step=step)
        self.accelerator.wait_for_everyone()
        return self.out.stop.stopped(f"checkpoint at step {step} saved")

    def finite(self, reader: PackedReader, step: Step, gradient: Gradient, norm: torch.Tensor) -> tuple[float, float]:
        """Loss and gradient norm as numbers. Raises StageError (79) if one is not finite."""
        loss, grad_norm = torch.stack([gradient.loss, norm.double()]).tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise self.diverged(reader, step, gradient, grad_norm)
        return loss, grad_norm

    def diverged(self, reader: PackedReader, step: Step, gradient: Gradient, grad_norm: float) -> StageError:
        """Write down what the step was made of; returns the error to leave with (79). The step is not applied."""
        path = self.out.checkpoints / f"diverged-step-{step.number + 1:08d}.json"
        loss = float(gradient.loss)
        if self.out.rank == 0:
            bins = [int(b) for b in step.bins.ravel() if b >= 0]
            path.parent.mkdir(parents=True, exist_ok=True)
            report = {
                "step": step.number + 1,
                "loss": repr(loss),
                "grad_norm": repr(grad_norm),
                "rows": {str(b): [r.hex() for r in reader.values(reader.rows(b), "row_id")] for b in bins},
                "micro_batches": [
                    {"bins": block.tolist(), "loss": repr(float(part))}
                    for block, part in zip(
                        step.micro_batches(0, self.cfg.batch.micro_bins), gradient.micro_losses, strict=True
                    )
                ],
            }
            write_json(path, report)
        self.accelerator.wait_for_everyone()
        back = f"the last checkpoint is of step {self.saved}" if self.saved else "there is no checkpoint yet"
        return StageError(
            f"step {step.number + 1}: loss {loss}, gradient norm {grad_norm}: not finite, so the step was not applied;"
            f" {back}. its rows are in {path}; look at them, or lower --lr",
            DIVERGED,
        )
