"""Run by test_loss_scale_ce_triton.py under TRITON_INTERPRET=1: one JSON line per case, its deviation from float64.

Triton reads that variable while it is imported, so this cannot share a process with other tests.
"""

import json
import sys
from pathlib import Path

import torch
from triton.runtime import interpreter

from postmill.kernels.loss_scale_ce import cost, triton_host
from postmill.kernels.loss_scale_ce.api import loss_scale_ce
from postmill.kernels.loss_scale_ce.triton_host import Blocks, Tuning

sys.path.insert(0, str(Path(__file__).parent))
from loss_problem import GRID, eager_loss, leaves, problem

SMALL = Tuning(Blocks(16, 128, 16, 4, 1), Blocks(32, 64, 16, 4, 1), Blocks(16, 32, 16, 4, 1), Blocks(16, 64, 16, 4, 1))
"""Several tiles along every axis of a problem that the interpreter finishes in a second."""


def relative(got, want):
    assert got.shape == want.shape
    if not want.numel():
        return 0.0
    size = want.abs().max().item()
    gap = (got.double() - want.double()).abs().max().item()
    return gap / size if size else gap


def deviations(dtype, *, rows=False, frozen=False, size=(37, 19, 251), active=0.5, change=None, **options):
    *tensors, targets, weights = problem(*size, dtype=dtype, active=active)
    if change:
        change(tensors, targets, weights)
    exact, got = leaves(*tensors, dtype=torch.float64), leaves(*tensors)
    got[1].requires_grad_(not frozen)
    clean = torch.where(((weights != 0) & (targets >= 0))[:, None], exact[0], 0)
    want = eager_loss(clean, exact[1], exact[2], targets, weights, 1e4, **options)
    out = loss_scale_ce(
        got[0],
        got[1],
        targets,
        weights,
        denominator=1e4,
        bias_V=got[2],
        backend="triton",
        return_logp=rows,
        return_entropy=rows,
        return_correct=True,
        **options,
    )
    value, want_value = out.loss, want
    if rows:
        z_options = {k: v for k, v in options.items() if k in ("logit_scale", "softcap")}
        active_T = (weights != 0) & (targets >= 0)
        z = clean @ exact[1].T + exact[2]
        z = z * z_options.get("logit_scale", 1.0)
        if z_options.get("softcap"):
            z = z_options["softcap"] * torch.tanh(z / z_options["softcap"])
        logp_TV = z.log_softmax(-1)
        logp = torch.where(active_T, logp_TV.gather(1, targets.clamp(min=0)[:, None]).squeeze(1), 0)
        entropy = torch.where(active_T, -(logp_TV.exp() * logp_TV).sum(-1), 0)
        g = torch.Generator().manual_seed(1)
        upstream = torch.randn(2, len(targets), generator=g, dtype=torch.float64)
        value = (upstream[0] * out.logp_T + upstream[1] * out.entropy_T).sum()
        want_value = (upstream[0] * logp + upstream[1] * entropy).sum()
    names = ["hidden", "bias"] if frozen else ["hidden", "weight", "bias"]
    pick = [0, 2] if frozen else [0, 1, 2]
    got_grads = torch.autograd.grad(value, [got[i] for i in pick])
    want_grads = torch.autograd.grad(want_value, [exact[i] for i in pick])
    result = {"loss": relative(out.loss, want), "value": relative(value, want_value)}
    return result | {n: relative(g, w) for n, g, w in zip(names, got_grads, want_grads, strict=True)}


def poison_skipped(tensors, targets, weights):
    tensors[0][(weights == 0) | (targets < 0)] = torch.nan


def zero(tensors, targets, weights):
    weights.zero_()


def one_row(tensors, targets, weights):
    weights.zero_()
    weights[9], targets[9] = -2.0, 250


def bar(tensors, targets, weights):
    tensors[2][:150] = -torch.inf
    targets[targets >= 0] = targets[targets >= 0].clamp(min=150)


def extreme(tensors, targets, weights):
    tensors[0] *= 4000


def cases():
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    for options in (*GRID[::4], GRID[2], GRID[15]):  # the interpreter is slow; the other backends run the whole grid
        yield f"float32 {options}", lambda o=options: deviations(f32, **o)
    for dtype in (f32, f16, bf16):
        yield f"{dtype} plain", lambda d=dtype: deviations(d)
        yield f"{dtype} rows", lambda d=dtype: deviations(d, rows=True, softcap=3.0, logit_scale=0.5)
    yield "float32 frozen", lambda: deviations(f32, frozen=True)
    yield "float32 all active", lambda: deviations(f32, active=2.0, size=(48, 32, 256))
    yield "float32 poison", lambda: deviations(f32, change=poison_skipped)
    yield "float32 poison rows", lambda: deviations(f32, change=poison_skipped, rows=True)
    yield "float32 zero", lambda: deviations(f32, change=zero)
    yield "float32 one", lambda: deviations(f32, change=one_row)
    yield "float32 barred", lambda: deviations(f32, change=bar)
    yield "float32 extreme", lambda: deviations(f32, change=extreme)
    yield "float32 tiny", lambda: deviations(f32, size=(1, 1, 2), active=2.0)
    yield "float32 no tokens", lambda: deviations(f32, size=(0, 4, 7))


def nan_and_out_of_range():
    """What surfaces as NaN in the loss, and in the gradient of the row that is to blame."""
    found = {}
    for where in ("hidden", "head", "weights", "outside"):
        *tensors, targets, weights = problem(dtype=torch.float32)
        row = int(((weights != 0) & (targets >= 0)).nonzero()[0])
        if where == "hidden":
            tensors[0][row, 2] = torch.nan
        elif where == "head":
            tensors[1][11, 2] = torch.nan
        elif where == "weights":
            weights[row] = torch.nan
        else:
            targets[row] = len(tensors[1])
        hidden, weight, _ = leaves(*tensors)
        loss = loss_scale_ce(hidden, weight, targets, weights, denominator=1.0, backend="triton").loss
        loss.backward()
        found[where] = [bool(loss.isnan()), bool(hidden.grad[row].isnan().any())]
    return found


def inserted_rows():
    """Whether rows of weight 0, full of NaN, between the others leave loss and gradients the same to the last bit."""
    hidden, weight, bias, targets, weights = problem(dtype=torch.float32)
    keep = torch.arange(len(targets)) * 2
    wide = torch.full((2 * len(targets), hidden.shape[1]), torch.nan)
    wide_targets, wide_weights = torch.randint(len(weight), (len(wide),)), torch.zeros(len(wide))
    wide[keep], wide_targets[keep], wide_weights[keep] = hidden, targets, weights
    results = []
    for rows in ((hidden, targets, weights), (wide, wide_targets, wide_weights)):
        got = leaves(rows[0], weight, bias)
        out = loss_scale_ce(got[0], got[1], *rows[1:], denominator=3.0, bias_V=got[2], backend="triton")
        results.append((out.loss, *torch.autograd.grad(out.loss, got)))
    (loss, *grads), (wide_loss, *wide_grads) = results
    pairs = [(loss, wide_loss), (grads[0], wide_grads[0][keep]), *zip(grads[1:], wide_grads[1:], strict=True)]
    return {"equal": all(torch.equal(a, b) for a, b in pairs), "clean": not wide_grads[0][1::2].any()}


class Counter:
    """Counts what the interpreter is asked to do, kernel by kernel."""

    def __init__(self):
        self.counts = {}
        builder = interpreter.InterpreterBuilder
        dot, load, store = builder.create_dot, builder.create_masked_load, builder.create_masked_store

        def counted_dot(this, a, b, *rest):
            self.add(0, 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
            return dot(this, a, b, *rest)

        def counted_load(this, pointers, mask, *rest):
            self.add(1, int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8)
            return load(this, pointers, mask, *rest)

        def counted_store(this, pointers, value, mask, *rest):
            self.add(2, int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8)
            return store(this, pointers, value, mask, *rest)

        builder.create_dot = counted_dot
        builder.create_masked_load, builder.create_masked_store = counted_load, counted_store

    def add(self, index, amount):
        kernel = next(f.f_code.co_name for f in walk_stack() if f.f_code.co_name.endswith("_kernel"))
        self.counts.setdefault(kernel, [0, 0, 0])[index] += amount


def walk_stack():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def counted_and_closed_form(counter, *, stored):
    """One gradient on whole tiles, counted, beside what cost.py says of it."""
    counter.counts = {}
    num_tokens, vocab_size, hidden_size = 64, 256, 32
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, hidden_size, generator=g).requires_grad_() for n in (num_tokens, vocab_size))
    targets = torch.randint(vocab_size, (num_tokens,), generator=g)
    loss_scale_ce(hidden, weight, targets, torch.ones(num_tokens), denominator=1.0, backend="triton")
    sizes = (num_tokens, vocab_size, hidden_size)
    closed = {
        "logits_kernel": cost.logits_cost(*sizes, SMALL.logits, 4, stored=stored),
        "reduce_kernel": cost.reduce_cost(num_tokens, vocab_size, SMALL.logits),
        "grad_hidden_kernel": cost.grad_hidden_cost(*sizes, SMALL.hidden, 4, stored=stored),
        "grad_weight_kernel": cost.grad_weight_cost(*sizes, SMALL.weight, 4, stored=stored),
    }
    if not stored:
        closed["dz_kernel"] = cost.dz_cost(*sizes, SMALL.wide_logits, 4)
    return {"counted": counter.counts, "closed": closed, "AHV": num_tokens * vocab_size * hidden_size}


def main():
    triton_host.TUNINGS = dict.fromkeys(triton_host.TUNINGS, SMALL)
    for name, run in cases():
        print(json.dumps([name, run()]), flush=True)
    # Chunks of rows through E, several slices where it is made again, and neither may change the answer.
    triton_host.FEWEST_STORED_ROWS, triton_host.STORE_BYTES = 1, 128 * 251 * 4
    print(json.dumps(["chunked", deviations(torch.float32, size=(300, 19, 251))]), flush=True)
    print(json.dumps(["chunked few", deviations(torch.float32, size=(300, 19, 251), active=0.01)]), flush=True)
    triton_host.FEWEST_STORED_ROWS, triton_host.STORE_BYTES, triton_host.SLICE_BYTES = 512, 0, 1
    print(json.dumps(["sliced", deviations(torch.float32, size=(37, 19, 700), label_smoothing=0.1)]), flush=True)
    print(json.dumps(["sliced rows", deviations(torch.float32, size=(37, 19, 700), rows=True)]), flush=True)
    print(json.dumps(["nan", nan_and_out_of_range()]), flush=True)
    print(json.dumps(["inserted sliced", inserted_rows()]), flush=True)
    counter, triton_host.SLICE_BYTES = Counter(), 1 << 30
    print(json.dumps(["cost recomputed", counted_and_closed_form(counter, stored=False)]), flush=True)
    triton_host.STORE_BYTES = 1 << 30
    print(json.dumps(["cost stored", counted_and_closed_form(counter, stored=True)]), flush=True)
    print(json.dumps(["inserted", inserted_rows()]), flush=True)


if __name__ == "__main__":
    main()
