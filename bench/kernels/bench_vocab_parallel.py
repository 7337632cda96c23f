"""What does the loss cost where each rank holds a slice of the vocabulary, and what does sharing it gain?

Two processes on gloo, one thread each, hold half of the head each; the peer is what Megatron-LM does there (all logits
of the slice, three all-reduces of a number a row, a hand-written backward pass), on the same rows. Beside them one
process with the whole head and one thread. Forward and backward to hidden and head, float32, a quarter of the tokens
active. Run this file as `KIND RANKS TOKENS VOCAB HIDDEN OUT` for one; it leaves its median of three steps in OUT.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing

KINDS = {"sharded": 2, "megatron": 2, "whole": 1}


class MegatronCrossEntropy(torch.autograd.Function):
    """Per-token cross-entropy of logits [T, N] in slices, <https://arxiv.org/abs/1909.08053> section 3."""

    @staticmethod
    def forward(ctx: Any, logits_TN: Tensor, targets_T: Tensor, start: int) -> Tensor:
        max_T = logits_TN.detach().amax(1)
        dist.all_reduce(max_T, op=dist.ReduceOp.MAX)
        shifted_TN = logits_TN - max_T[:, None]
        local_T = targets_T - start
        here_T = (local_T >= 0) & (local_T < logits_TN.shape[1])
        column_T = torch.where(here_T, local_T, 0)
        target_T = torch.where(here_T, shifted_TN.gather(1, column_T[:, None]).squeeze(1), 0)
        dist.all_reduce(target_T)
        exp_TN = shifted_TN.exp_()
        sum_T = exp_TN.sum(1)
        dist.all_reduce(sum_T)
        ctx.save_for_backward(exp_TN.div_(sum_T[:, None]), here_T, column_T)
        return sum_T.log() - target_T

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor, None, None]:
        p_TN, here_T, column_T = ctx.saved_tensors
        p_TN[torch.arange(len(p_TN)), column_T] -= here_T.to(p_TN.dtype)
        return p_TN.mul_(grad_T[:, None]), None, None


def step(kind: str, given: tuple[Tensor, Tensor, Tensor, Tensor], start: int, vocab_size: int) -> tuple[Tensor, ...]:
    """Loss and both gradients of this rank; `given` holds its slice of the head."""
    from postmill.kernels.loss_scale_ce.api import loss_scale_ce
    from postmill.kernels.loss_scale_ce.vocab_parallel import loss_scale_ce_vocab_parallel

    hidden, head, targets, weights = given
    if kind == "whole":
        loss = loss_scale_ce(hidden, head, targets, weights, normaliser=len(targets)).loss
    elif kind == "sharded":
        loss = loss_scale_ce_vocab_parallel(
            hidden, head, targets, weights, vocab_start=start, vocab_size=vocab_size, normaliser=len(targets)
        ).loss
    else:
        nll_T = MegatronCrossEntropy.apply(hidden @ head.T, targets, start)  # type: ignore[no-untyped-call]
        loss = (nll_T * weights).sum() / len(targets)
    hidden_grad, head_grad = torch.autograd.grad(loss, (hidden, head))
    if kind == "megatron":
        dist.all_reduce(hidden_grad)
    return loss.detach(), hidden_grad, head_grad


def rank(number: int, kind: str, ranks: int, size: tuple[int, int, int], out: str) -> None:
    from bench_loss_scale_ce import problem  # beside this file, which is a program here

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}.meeting", rank=number, world_size=ranks)
    hidden, head, targets, weights = problem(*size, 0.25)
    start, end = size[1] * number // ranks, size[1] * (number + 1) // ranks
    given = (hidden, head[start:end].detach().clone().requires_grad_(), targets, weights)
    del head
    seconds = []
    for _ in range(4):
        dist.barrier()
        begin = time.perf_counter()
        loss, hidden_grad, head_grad = step(kind, given, start, size[1])
        dist.barrier()
        seconds.append(time.perf_counter() - begin)
    norms = torch.stack([loss.double(), hidden_grad.double().norm(), head_grad.double().square().sum()])
    dist.all_reduce(norms[2])
    if number == 0:
        norms[2].sqrt_()
        Path(out).write_text(json.dumps({"seconds": statistics.median(seconds[1:]), "norms": norms.tolist()}))
    dist.destroy_process_group()


def cases(smoke: bool) -> Iterator[Any]:
    from harness import Case, Rival

    size = (96, 1999, 32) if smoke else (2048, 151_936, 256)
    with tempfile.TemporaryDirectory() as folder:
        outs = {kind: Path(folder) / kind for kind in KINDS}

        def argv(kind: str) -> list[str]:
            return [sys.executable, __file__, kind, str(KINDS[kind]), *map(str, size), str(outs[kind])]

        def result(kind: str) -> Any:
            return json.loads(outs[kind].read_text())

        def check() -> dict[str, Any]:
            """Loss, norm of the hidden gradient and norm of the whole head gradient are the same for everyone."""
            for kind in KINDS:
                subprocess.run(argv(kind), check=True)
            want = result("whole")["norms"]
            gaps = {
                kind: max(abs(a - b) / abs(b) for a, b in zip(result(kind)["norms"], want, strict=True))
                for kind in KINDS
            }
            assert max(gaps.values()) < 1e-5, gaps
            return {"largest gap of loss and gradient norms to one rank": float(f"{max(gaps.values()):.1e}")}

        names = {"sharded": "postmill, 2 ranks", "megatron": "as Megatron-LM, 2 ranks", "whole": "postmill, 1 rank"}
        yield Case(
            f"H {size[2]}, 25% active, 2 ranks",
            f"tokens a second, forward and backward, T {size[0]}, V {size[1]}, one thread a rank",
            "tokens/s",
            [
                Rival(names[kind], argv(kind), size[0], seconds=lambda kind=kind: float(result(kind)["seconds"]))
                for kind in KINDS
            ],
            check,
            repeats=1 if smoke else 3,
            packages=("torch",),
            warm_up=False,
        )


if __name__ == "__main__":
    kind, ranks, *numbers, out = sys.argv[1:]
    job = (kind, int(ranks), tuple(map(int, numbers)), out)
    multiprocessing.spawn(rank, job, nprocs=int(ranks))
    Path(f"{out}.meeting").unlink(missing_ok=True)
