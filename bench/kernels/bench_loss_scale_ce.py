"""What do loss and gradients of a large-vocabulary head cost on a CPU, when only some tokens carry a weight?

One run is forward and backward to the gradients of hidden and head, float32, with real-valued token weights. Memory is
measured apart from time, each rival in a process of its own: the peak of one step above what was held before it, less
the two gradients, which every rival has to return. Run this file with `peak RIVAL TOKENS VOCAB HIDDEN ACTIVE` for one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Problem = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, ...]


def problem(num_tokens: int, vocab_size: int, hidden_size: int, active: float) -> Problem:
    """hidden, head, targets, weights; weights as a loss-scale config gives them: 0, 1, and some 3s and fractions."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=g).requires_grad_()
    head = torch.randn(vocab_size, hidden_size, generator=g).mul_(hidden_size**-0.5).requires_grad_()
    targets = torch.randint(vocab_size, (num_tokens,), generator=g)
    weights = torch.tensor([1.0, 1.0, 3.0, 0.3])[torch.randint(4, (num_tokens,), generator=g)]
    weights[torch.randperm(num_tokens, generator=g)[round(active * num_tokens) :]] = 0
    return hidden, head, targets, weights


def ours(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    from postmill.kernels.loss_scale_ce.api import loss_scale_ce

    return loss_scale_ce(hidden, head, targets, weights, normaliser=len(targets), backend="cpp").loss


def reference(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    from postmill.kernels.loss_scale_ce.api import loss_scale_ce

    return loss_scale_ce(hidden, head, targets, weights, normaliser=len(targets), backend="reference").loss


def eager(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (F.cross_entropy(F.linear(hidden, head), targets, reduction="none") * weights).sum() / len(targets)


def torch_linear_ce(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    return (F.linear_cross_entropy(hidden, head, targets, reduction="none") * weights).sum() / len(targets)


def torch_linear_ce_chunked(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    # Left to choose, torch 2.13 takes chunks so small that one step lasts minutes: each adds into the whole gradient.
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=512)
    nll = F.linear_cross_entropy(hidden, head, targets, reduction="none", options=options)
    return (nll * weights).sum() / len(targets)


def compacted(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """What ms-swift's logits_to_keep, torchtune and TRL do first: drop the rows, then everything as usual."""
    rows = weights.nonzero().squeeze(-1)
    nll = F.cross_entropy(F.linear(hidden[rows], head), targets[rows], reduction="none")
    return (nll * weights[rows]).sum() / len(targets)


RIVALS: dict[str, Callable[..., Tensor]] = {"postmill cpp": ours, "eager": eager, "eager, rows compacted": compacted}
if hasattr(F, "linear_cross_entropy"):
    RIVALS["F.linear_cross_entropy"] = torch_linear_ce
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        RIVALS["same, chunks of 512"] = torch_linear_ce_chunked
RIVALS["postmill reference"] = reference


def step(rival: str, given: Problem) -> tuple[Tensor, Gradients]:
    loss = RIVALS[rival](*given)
    return loss.detach(), torch.autograd.grad(loss, given[:2])


def peak_mib(rival: str, *size: Any) -> float:
    """Growth of a fresh process over one step, less the gradients."""
    command = [sys.executable, __file__, "peak", rival, *map(str, size)]
    # The benchmark's own `sys.path` entries hold modules whose names shadow the standard library's.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


def cases(smoke: bool) -> Iterator[Any]:
    from harness import Case, Rival

    num_tokens, vocab_size = (96, 1999) if smoke else (2048, 151_936)
    for hidden_size in (32,) if smoke else (1024, 256):
        for active in (0.25, 1.0):
            size = (num_tokens, vocab_size, hidden_size, active)
            given = problem(*size)

            def check(given: Problem = given, size: tuple[Any, ...] = size) -> dict[str, Any]:
                want_loss, want = step("postmill reference", given)
                worst = {}
                for rival in RIVALS:
                    loss, got = step(rival, given)
                    gaps = [((g - w).abs().max() / w.abs().max()).item() for g, w in zip(got, want, strict=True)]
                    worst[rival] = float(f"{max(gaps):.1e}")
                    assert abs(loss - want_loss) <= 1e-5 * abs(want_loss), (rival, loss, want_loss)
                    assert worst[rival] < 1e-4, (rival, worst)
                    del got
                del want
                growth = {} if smoke else {rival: round(peak_mib(rival, *size), 1) for rival in RIVALS}
                facts = {"growth beyond the gradients, MiB": growth, "largest gap to the reference": worst}
                return facts | {"threads": torch.get_num_threads()}

            rivals = [
                Rival(rival, lambda rival=rival, given=given: step(rival, given), num_tokens)
                for rival in RIVALS
                if rival != "postmill reference"
            ]
            question = f"tokens a second, forward and backward, T {num_tokens}, V {vocab_size}, H {hidden_size}"
            name = f"H {hidden_size}, {active:.0%} active"
            # The check has run everyone once, a run takes up to 20 s: no round is thrown away.
            yield Case(name, question, "tokens/s", rivals, check, 3, packages=("torch",), warm_up=False)


def print_peak(rival: str, *size: str) -> None:
    tokens, vocab, hidden = map(int, size[:3])
    given = problem(tokens, vocab, hidden, float(size[3]))
    step(rival, problem(32, 999, 16, 0.5))  # threads, code and libraries are not the step's growth
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    _, grads = step(rival, given)
    print(json.dumps((_status("VmHWM") - before) / 1024 - sum(g.nbytes for g in grads) / 2**20))


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1])


if __name__ == "__main__":
    assert sys.argv[1] == "peak", __doc__
    print_peak(*sys.argv[2:])
