"""`PYTHON step_with_backend.py PACKED MODEL BACKEND OUT`: a train step's loss and gradients, to OUT (safetensors).

A process of its own, because Triton reads TRITON_INTERPRET while it is imported.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tiny_model import start

from postmill.io.packed import PackedReader
from postmill.stages.options import make
from postmill.stages.shared.forward import Forward
from postmill.stages.train.columns import BatchSource
from postmill.stages.train.config import Train
from postmill.stages.train.parallel.replicated import Replicated
from postmill.stages.train.plan import Steps
from postmill.stages.train.step import accumulate
from postmill.stages.train.tied import share_gradient
from postmill.stages.train.tuners.full import Full


def main(packed: str, base: str, backend: str, out: str) -> None:
    torch.set_num_threads(1)
    cfg = make(Train, tuner="full", bins_per_step=2, loss_kernel=backend)
    reader = PackedReader(Path(packed))
    model = start(Full(), Path(base))
    share_gradient(model)
    forward = Forward(model, compute_dtype=torch.float32, backend=backend).train()
    objective = cfg.objective.build()
    source = BatchSource(reader, objective.needs)
    accelerator, step = Accelerator(cpu=True), Steps(cfg, reader, 1)[0]
    found = accumulate(cfg, forward, objective, source, step, layout=Replicated(accelerator))
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    save_file(gradients | {"loss": found.loss}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
