"""Run by test_loss_scale_ce_triton.py under TRITON_INTERPRET=1: one JSON line per case, its deviation from float64.

Triton reads that variable while it is imported, so this cannot share a process with other tests.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from triton.runtime import interpreter

from postmill.kernels.loss_scale_ce import triton_host, triton_tuning
from postmill.kernels.loss_scale_ce.api import loss_scale_ce
from postmill.kernels.loss_scale_ce.triton_tuning import Blocks, Tuning

sys.path.insert(0, str(Path(__file__).parent))
import triton_cost
from loss_problem import (
    GRID,
    bar,
    deviations,
    extreme,
    inserted_rows,
    nan_and_out_of_range,
    one_row,
    poison_skipped,
    zero,
)

SMALL = Tuning(
    Blocks(16, 128, 16, 4, 1),
    Blocks(32, 64, 16, 4, 1),
    Blocks(16, 32, 16, 4, 1),
    Blocks(16, 64, 16, 4, 1),
    has_descriptors=True,
)
"""Several tiles along every axis of a problem that the interpreter finishes in a second."""


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


class Counter:
    """Counts what the interpreter is asked to do, kernel by kernel, scalars left out."""

    def __init__(self):
        self.counts = {}
        builder = interpreter.InterpreterBuilder
        dot, load, store = builder.create_dot, builder.create_masked_load, builder.create_masked_store

        def counted_dot(this, a, b, *rest):
            self.add(0, 2 * a.data.shape[0] * a.data.shape[1] * b.data.shape[1])
            return dot(this, a, b, *rest)

        def counted_load(this, pointers, mask, *rest, **named):
            if pointers.data.size > 1:
                self.add(1, int(np.asarray(mask.data).sum()) * pointers.get_element_ty().primitive_bitwidth // 8)
            return load(this, pointers, mask, *rest, **named)

        def counted_store(this, pointers, value, mask, *rest):
            self.add(2, int(np.asarray(mask.data).sum()) * pointers.get_element_ty().primitive_bitwidth // 8)
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
    """One gradient on whole tiles, counted, beside what `triton_cost` says of it."""
    counter.counts = {}
    num_tokens, vocab_size, hidden_size = 64, 256, 32
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, hidden_size, generator=g).requires_grad_() for n in (num_tokens, vocab_size))
    targets = torch.randint(vocab_size, (num_tokens,), generator=g)
    loss_scale_ce(hidden, weight, targets, torch.ones(num_tokens), normaliser=1.0, backend="triton")
    sizes = (num_tokens, vocab_size, hidden_size)
    closed = {
        "logits_kernel": triton_cost.logits_cost(*sizes, SMALL.logits, 4, stored=stored),
        "reduce_kernel": triton_cost.reduce_cost(num_tokens, vocab_size, SMALL.logits),
        "grad_hidden_kernel": triton_cost.grad_hidden_cost(*sizes, SMALL.hidden, 4),
        "grad_weight_kernel": triton_cost.grad_weight_cost(*sizes, SMALL.weight, 4),
    }
    if stored:
        closed["stored_dz_kernel"] = triton_cost.stored_dz_cost(num_tokens, vocab_size, SMALL.logits.n, 4)
    else:
        closed["dz_kernel"] = triton_cost.dz_cost(*sizes, SMALL.wide_logits, 4)
    return {"counted": counter.counts, "closed": closed, "AHV": num_tokens * vocab_size * hidden_size}


def main():
    triton_tuning.TUNINGS = dict.fromkeys(triton_tuning.TUNINGS, SMALL)
    for name, run in cases():
        print(json.dumps([name, run()]), flush=True)
    triton_tuning.TUNINGS = dict.fromkeys(triton_tuning.TUNINGS, SMALL._replace(has_descriptors=False))
    print(json.dumps(["float32 pointers", deviations(torch.float32, label_smoothing=0.1)]), flush=True)
    print(json.dumps(["float32 pointers rows", deviations(torch.float32, rows=True, softcap=3.0)]), flush=True)
    triton_tuning.TUNINGS = dict.fromkeys(triton_tuning.TUNINGS, SMALL)
    # Chunks of rows through E, several slices where it is made again, and neither may change the answer.
    triton_host.FEWEST_STORED_ROWS, triton_host.STORE_BYTES = 1, 128 * 251 * 4
    # what one chunk may take beyond STORE_BYTES is 19 x 251 x 4 bytes: 300 rows need three
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
