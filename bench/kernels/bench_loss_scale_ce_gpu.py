"""What do loss and gradients of a large-vocabulary head cost on a GPU, when only some tokens carry a weight?

    python bench/run.py loss_scale_ce_gpu

One run is forward and backward in bfloat16 to the gradients of hidden and head (of hidden alone where the head is
frozen), with real-valued token weights, timed by the GPU's own events. It is queued behind a few milliseconds of other
work, as in training, where the host runs ahead: a rival that waits for the device is seen waiting. Memory is the peak
of one run above what was held before it, less the gradients. Logits have a standard deviation of 4, hence an entropy of
about 4 nats, as a language model's may: next to no block of CCE's should be below its threshold for gradients.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from harness import Case, Rival
from torch import Tensor
from torch.nn import functional as F

from postmill.kernels.loss_scale_ce.api import loss_scale_ce

IGNORED = -100


class Size(NamedTuple):
    hidden_size: int
    vocab_size: int
    num_tokens: int
    active: float
    is_frozen: bool = False


SIZES = [
    Size(4096, 151_936, 4096, 0.25),
    Size(4096, 151_936, 4096, 1.0),
    Size(4096, 151_936, 16_384, 0.25),
    Size(4096, 151_936, 16_384, 1.0),
    Size(4096, 151_936, 4096, 0.25, is_frozen=True),
    Size(4096, 151_936, 4096, 1.0, is_frozen=True),
    Size(1024, 151_936, 4096, 0.25),
    Size(1024, 151_936, 4096, 1.0),
    Size(4096, 128_256, 4096, 0.25),
    Size(4096, 128_256, 4096, 1.0),
]


class Problem(NamedTuple):
    hidden: Tensor
    head: Tensor
    targets: Tensor
    """-100 where the weight is 0: every rival may skip those rows."""
    weights: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.hidden, self.head) if t.requires_grad]


def problem(size: Size) -> Problem:
    """Weights as a loss-scale config gives them: 0, 1, and some 3s and fractions."""
    g = torch.Generator("cuda").manual_seed(0)
    options: dict[str, Any] = {"generator": g, "device": "cuda", "dtype": torch.bfloat16}
    hidden = torch.randn(size.num_tokens, size.hidden_size, **options).requires_grad_()
    head = torch.randn(size.vocab_size, size.hidden_size, **options).mul_(4 * size.hidden_size**-0.5)
    targets = torch.randint(size.vocab_size, (size.num_tokens,), generator=g, device="cuda")
    picks = torch.randint(4, (size.num_tokens,), generator=g, device="cuda")
    weights = torch.tensor([1.0, 1.0, 3.0, 0.3], device="cuda")[picks]
    skipped = torch.randperm(size.num_tokens, generator=g, device="cuda")[round(size.active * size.num_tokens) :]
    weights[skipped], targets[skipped] = 0, IGNORED
    return Problem(hidden, head.requires_grad_(not size.is_frozen), targets, weights)


def ours(p: Problem, backend: Any = "triton") -> Tensor:
    return loss_scale_ce(p.hidden, p.head, p.targets, p.weights, normaliser=len(p.targets), backend=backend).loss


def eager(p: Problem) -> Tensor:
    """As ms-swift computes it: float32 logits of every row, a loss per token, times its weight."""
    nll = F.cross_entropy(F.linear(p.hidden, p.head).float(), p.targets, reduction="none", ignore_index=IGNORED)
    return (nll * p.weights).sum() / len(p.targets)


def compacted(p: Problem) -> Tensor:
    """The same on the rows that count, which the host has to wait for."""
    rows = p.weights.nonzero().squeeze(-1)
    nll = F.cross_entropy(F.linear(p.hidden[rows], p.head).float(), p.targets[rows], reduction="none")
    return (nll * p.weights[rows]).sum() / len(p.targets)


def cce(p: Problem) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    nll = linear_cross_entropy(p.hidden, p.head, p.targets, ignore_index=IGNORED, reduction="none")
    return (nll * p.weights).sum() / len(p.targets)


def liger(p: Problem) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")(p.head, p.hidden, p.targets)


RIVALS: dict[str, Callable[[Problem], Tensor]] = {
    "postmill triton": ours,
    "eager, float32 logits": eager,
    "same, torch.compile": torch.compile(eager, dynamic=False),
    "eager, rows compacted": compacted,
    "cut-cross-entropy": cce,
    "liger": liger,
}
UNWEIGHTED = {"liger": "every weight is 1: it takes no token weights"}


def step(loss_of: Callable[[Problem], Tensor], given: Problem) -> list[Tensor]:
    """Loss and gradients."""
    loss = loss_of(given)
    return [loss.detach(), *torch.autograd.grad(loss, given.leaves)]


def peak_mib(loss_of: Callable[[Problem], Tensor], given: Problem) -> float:
    """Growth over one step, less the gradients."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _, *grads = step(loss_of, given)
    peak = torch.cuda.max_memory_allocated() - before - sum(g.nbytes for g in grads)
    return round(peak / 2**20, 1)


def gaps(got: list[Tensor], want: list[Tensor]) -> list[float]:
    """Of the loss and of each gradient, as a share of the norm."""
    shares = ((g.float() - w.float()).norm() / w.float().norm() for g, w in zip(got, want, strict=True))
    return [float(f"{share.item():.1e}") for share in shares]


def product_flops_per_s(size: int = 8192) -> float:
    """What this GPU makes of a large bfloat16 product of random matrices, by its own library."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = sorted(event_seconds(lambda: a @ b)[1] for _ in range(12))
    return 2 * size**3 / seconds[len(seconds) // 2]


def event_seconds(run: Callable[[], Any], before: Callable[[], Any] = lambda: None) -> tuple[Any, float]:
    """What `run` returns, and how long the GPU took from the end of `before` to the end of `run`."""
    before()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = run()
    end.record()
    end.synchronize()
    return result, start.elapsed_time(end) / 1e3


def check(given: Problem, size: Size) -> dict[str, Any]:
    """The rivals' answers beside float32's; what they hold; and what no implementation can beat."""
    want = step(lambda p: ours(p, "reference"), given)
    memory, worst = {}, {}
    for name, loss_of in RIVALS.items():
        got = step(loss_of, given)
        if name not in UNWEIGHTED:
            worst[name] = gaps(got, want)
            assert max(worst[name]) < 2e-2, (name, worst[name])
        del got
        memory[name] = peak_mib(loss_of, given)
    rows = round(size.active * size.num_tokens)
    flops, rate = (4 if size.is_frozen else 6) * rows * size.hidden_size * size.vocab_size, product_flops_per_s()
    return {
        "growth beyond the gradients, MiB": memory,
        "gap to float32: loss, gradients": worst,
        "products at the rate of a large one, ms": round(flops / rate * 1e3, 2),
        "that rate, TFLOP/s": round(rate / 1e12),
    }


def rival(name: str, loss_of: Callable[[Problem], Tensor], given: Problem) -> Rival:
    seconds = 0.0
    busy = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def before() -> None:
        for _ in range(4):
            torch.mm(busy, busy, out=torch.empty_like(busy))

    def run() -> None:
        nonlocal seconds
        _, seconds = event_seconds(lambda: step(loss_of, given), before)

    return Rival(name, run, len(given.targets), UNWEIGHTED.get(name, ""), seconds=lambda: seconds)


def cases(smoke: bool) -> Iterator[Case]:
    if not torch.cuda.is_available():
        yield Case("gpu", "", "", [], skip="no CUDA device")
        return
    for size in [Size(64, 1999, 96, 0.5)] if smoke else SIZES:
        given = problem(size)
        frozen = ", head frozen" if size.is_frozen else ""
        rivals = [rival(name, loss_of, given) for name, loss_of in RIVALS.items()]
        yield Case(
            f"H {size.hidden_size}, V {size.vocab_size}, T {size.num_tokens}, {size.active:.0%} active{frozen}",
            "tokens a second, forward and backward, bfloat16",
            "tokens/s",
            rivals,
            lambda given=given, size=size: check(given, size),
            repeats=7,
            packages=("torch", "triton", "cut-cross-entropy", "liger-kernel"),
            gpu=torch.cuda.get_device_name().removeprefix("NVIDIA "),
        )
        del given, rivals
        torch.cuda.empty_cache()
