"""Laws of every objective, on files: what a step learns does not depend on how it is cut, dealt or interrupted."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from accelerate import Accelerator
from agreement import against
from forks import fork_ranks, wait_code

from postmill.io.errors import StageError
from postmill.io.manifest import load_artifact
from postmill.io.packed import PackedReader
from postmill.io.scores import ScoresReader
from postmill.stages.options import make, tag
from postmill.stages.protocol import Out
from postmill.stages.runner import Options, find_inputs, job_of, run_stage
from postmill.stages.shared import attention
from postmill.stages.shared.forward import Forward
from postmill.stages.train import model
from postmill.stages.train import run as train_stage
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.config import STAGE, Train
from postmill.stages.train.parallel.replicated import Replicated
from postmill.stages.train.plan import Steps
from postmill.stages.train.step import accumulate, validate

CUTS, RANKS = "micro-batches of 1, 2 and 4 bins, packed and alone", "two ranks"
Ports = dict[str, list[str]]


def write_twice(folder: Path, name: str, base: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[Path, Path]:
    """The same rows packed several to a bin, and as few to a bin as their groups allow."""
    packed = tiny_model.write_packed(folder / name, base, rows, **options)
    sizes: dict[Any, int] = {}
    for number, row in enumerate(rows):
        group = row.get("pair_id") if row.get("side") is not None else None
        sizes[group or number] = sizes.get(group or number, 0) + row["length"]
    alone = tiny_model.write_packed(folder / f"{name}-alone", base, rows, row_tokens=max(sizes.values()))
    return packed, alone


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def whole_step(
    objective: Any, packed: Path, base: Path, scores: dict[str, Path], micro_bins: int
) -> tuple[float, torch.Tensor, dict[str, float]]:
    """Loss, gradient and metrics of all rows as one step, a little away from the base; validation agrees."""
    reader = PackedReader(packed)
    cfg = make(Train, objective=objective, tuner="full", bins_per_step=-(-len(reader) // 4) * 4, micro_bins=micro_bins)
    found = {role: ScoresReader(path) for role, path in scores.items()}
    source = BatchSource(reader, objective.needs, found)
    net = model.loader(attention.choose("rows", torch.device("cpu"), torch.float32), cfg)(base, torch.float32)
    torch.manual_seed(3)
    for parameter in net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    head = objective.needs.head
    forward = Forward(net, compute_dtype=torch.float32, backend="reference", head=head).eval()
    accelerator = Accelerator(cpu=True)
    step, loss = Steps(cfg, reader, 1)[0], objective.build()
    got = accumulate(cfg, forward, loss, source, step, layout=Replicated(accelerator))
    gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert float(gradients.abs().max()) > 0
    valid = validate(cfg, forward, loss, source, Replicated(accelerator))
    assert valid["loss"] == pytest.approx(float(got.loss), rel=1e-5)
    for name, value in got.metrics.items():
        assert valid[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    return float(got.loss), gradients, {name: float(value) for name, value in got.metrics.items()}


def cuts_do_not_matter(
    objective: Any, packed: tuple[Path, Path], base: Path, scores: dict[str, Path] | None = None
) -> None:
    """Micro-batches of 1, 2 and 4 bins, and rows packed or alone, give one loss and one gradient."""
    cuts = [(packed[0], 1), (packed[0], 2), (packed[0], 4), (packed[1], 1), (packed[1], 4)]
    seen = [whole_step(objective, path, base, scores or {}, micro) for path, micro in cuts]
    assert len(PackedReader(packed[1])) > len(PackedReader(packed[0]))
    for loss, gradients, metrics in seen[1:]:
        against(tag(objective), CUTS, (loss, gradients), seen[0][:2])
        assert loss == pytest.approx(seen[0][0], rel=1e-6, abs=1e-7)
        assert float((gradients - seen[0][1]).abs().max()) <= 3e-6 * float(seen[0][1].abs().max())
        for name, value in metrics.items():
            assert value == pytest.approx(seen[0][2][name], rel=1e-5, abs=1e-6), name


def two_ranks_learn_as_one(objective: Any, ports: Ports, folder: Path, **options: Any) -> None:
    """Losses of all steps, and the gradient's norm, on two ranks of gloo."""
    cfg = make(Train, objective=objective, tuner="full", **({"bins_per_step": 4, "steps": 3, "lr": 1e-2} | options))
    run_stage(STAGE, cfg, ports, folder / "one", Options(threads=1))
    pids = fork_ranks([cfg] * 2, ports, folder / "two")
    assert [wait_code(pid) for pid in pids] == [0, 0]
    one, two = lines(folder / "one"), lines(folder / "two")
    against(tag(objective), RANKS, *((run[0]["loss"], run[0]["grad_norm"]) for run in (two, one)))
    assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-5)
    for x, y in zip(one, two, strict=True):
        assert y["loss"] == pytest.approx(x["loss"], rel=1e-5)
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-3)


class _StopAfter:
    def __init__(self, looks: int) -> None:
        self.looks, self.signal, self.graceful = looks, int(signal.SIGTERM), False

    @property
    def requested(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def stopped(self, saved: str) -> StageError:
        return StageError(saved, 75)


def resumes_to_the_same_bytes(objective: Any, ports: Ports, folder: Path, **options: Any) -> None:
    """A run that is stopped after its second step ends with the digest of one that is not."""
    cfg = make(Train, objective=objective, **({"bins_per_step": 4, "steps": 4, "lr": 1e-2} | options))
    run_stage(STAGE, cfg, ports, folder / "whole", Options(threads=1))
    inputs = find_inputs(STAGE, ports)
    job = job_of(STAGE, cfg, inputs)
    out = Out(STAGE, job.key, folder / "stopped", None, folder / "nowhere")
    out.threads, out.inputs, out.config, out.stop = 1, job.inputs, job.config, _StopAfter(2)
    with pytest.raises(StageError) as caught:
        train_stage.run(cfg, inputs, out)
    assert caught.value.code == 75
    run_stage(STAGE, cfg, ports, folder / "stopped", Options(threads=1))
    assert load_artifact(folder / "stopped").digest == load_artifact(folder / "whole").digest
    assert all(math.isfinite(line["loss"]) for line in lines(folder / "whole"))
