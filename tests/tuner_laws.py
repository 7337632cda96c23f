"""What every way of training must do: go on to the same bytes, and be what its validation loss says it is."""

import json
import signal

import numpy as np
import pytest
import torch
import transformers

from postmill.io.errors import StageError
from postmill.io.manifest import load_artifact, verify_files
from postmill.io.packed import PackedReader
from postmill.stages.options import make
from postmill.stages.protocol import Out
from postmill.stages.runner import Options, find_inputs, job_of, run_stage
from postmill.stages.train import run as train_stage
from postmill.stages.train.config import STAGE, Train

STEPS = 3


def given(world, **ports):
    return {name: [str(world / name)] for name in ("packed", "valid")} | {"model": [str(world / "base")]} | ports


def config(name, **options):
    settings = {
        "lr": 1e-2,
        "bins_per_step": 4,
        "micro_bins": 2,
        "steps": STEPS,
        "save_every": 0,
        "schedule": "constant",
    }
    return make(Train, tuner=name, **(settings | options))


def digest(path):
    """Digest of a whole artifact, checked file by file."""
    artifact = load_artifact(path)
    assert verify_files(artifact) == []
    return artifact.digest


class StopAfter:
    """A stop request that comes true when it is looked at for the n-th time."""

    def __init__(self, looks):
        self.looks, self.signal, self.graceful = looks, int(signal.SIGTERM), False

    @property
    def requested(self):
        self.looks -= 1
        return self.looks < 0

    def stopped(self, saved):
        return StageError(saved, 75)


def stop_at(cfg, ports, target, step):
    """Run the stage itself until `step` steps are done; its output is thrown away."""
    inputs = find_inputs(STAGE, ports)
    job = job_of(STAGE, cfg, inputs)
    out = Out(STAGE, job.key, target, None, target.parent / "nowhere")
    out.threads, out.inputs, out.config, out.stop = 1, job.inputs, job.config, StopAfter(step)
    with pytest.raises(StageError) as error:
        train_stage.run(cfg, inputs, out)
    assert error.value.code == 75


def trained(world, cfg, target):
    """The artifact of a run, which is also that of one that was stopped after each step in turn."""
    ports = given(world)
    run_stage(STAGE, cfg, ports, target, Options(threads=1))
    again = target.with_name(f"{target.name}-again")
    for _ in range(1, STEPS):
        stop_at(cfg, ports, again, 1)
    run_stage(STAGE, cfg, ports, again, Options(threads=1))
    assert digest(again) == digest(target)
    return target


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return lines[0]["loss"], lines[-1]["loss"], lines[-1]["valid_loss"]


def load(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def loss_of(model, packed):
    """Weighted loss of each row alone, by trained tokens: the textbook's, from the model's own logits."""
    reader, total, count = PackedReader(packed), 0.0, 0
    for number in range(len(reader)):
        found = reader.bin(number)
        for start, end in zip(found.cu_seqlens[:-1], found.cu_seqlens[1:], strict=True):
            ids = torch.from_numpy(found.input_ids[start:end].astype(np.int64))
            weights = torch.from_numpy(found.weights[start:end])
            with torch.no_grad():
                logp = model(ids[None]).logits[0, :-1].log_softmax(-1)
            total += float((-weights[1:] * logp.gather(-1, ids[1:, None])[:, 0]).double().sum())
            count += int((weights[1:] != 0).sum())
    return total / count
