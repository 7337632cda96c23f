"""The Triton backend under Triton's interpreter, against float64; see triton_interpreted.py for the cases."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from postmill.kernels.loss_scale_ce.terms import Needs

triton_host = pytest.importorskip("postmill.kernels.loss_scale_ce.triton_host", reason="triton is not installed")

pytestmark = pytest.mark.timeout(1200)  # the interpreter takes 20 s of a free core, many times that of a busy one

TOLERANCE = {"torch.float16": 1.5e-3, "torch.bfloat16": 1.6e-2}
"""Of the largest entry: dz and the operands are rounded to the input's dtype before the products, and the result once
more. Everything else is float32."""


@pytest.fixture(scope="module")
def results():
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    script = Path(__file__).parent / "triton_interpreted.py"
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return dict(json.loads(line) for line in run.stdout.splitlines())


def test_every_case_is_within_its_tolerance(results):
    checked = 0
    for case, deviations in results.items():
        if case.split()[0] in ("nan", "cost", "inserted"):
            continue
        tolerance = next((t for dtype, t in TOLERANCE.items() if case.startswith(dtype)), 3e-6)
        for what, deviation in deviations.items():
            limit = 3e-6 if what in ("loss", "value") else tolerance
            assert deviation <= limit, (case, what, deviation)
            checked += 1
    assert checked > 80


def test_nan_and_a_target_outside_the_vocabulary_surface_as_nan(results):
    in_loss_and_gradient = {where: results["nan"][where] for where in ("hidden", "head", "weights")}
    assert in_loss_and_gradient == {where: [True, True] for where in in_loss_and_gradient}
    assert results["nan"]["outside"][0]


@pytest.mark.parametrize("case", ["inserted", "inserted sliced"])
def test_inserted_rows_of_weight_zero_change_no_bit_even_when_they_are_nan(results, case):
    assert results[case] == {"equal": True, "clean": True}


@pytest.mark.parametrize(("case", "products"), [("cost stored", 6), ("cost recomputed", 8)])
def test_operations_and_bytes_are_those_of_the_closed_forms(results, case, products):
    counted, closed = results[case]["counted"], results[case]["closed"]
    assert counted == closed
    assert sum(flops for flops, _, _ in counted.values()) == products * results[case]["AHV"]


@pytest.mark.parametrize(
    ("num_tokens", "vocab_size", "needs_weight", "rows"),
    [
        (4096, 151_936, True, 4096),  # one chunk: E takes less than its room and dW in float32
        (16_384, 151_936, True, 4096),
        (16_384, 151_936, False, 3328),
        (4096, 151_936, False, 2048),
        (4096, 2_000_000, False, 0),  # too few at a time: the logits are made again
    ],
)
def test_rows_of_e_held_at_a_time(num_tokens, vocab_size, needs_weight, rows):
    weight_VH = torch.empty(vocab_size, 4096, dtype=torch.bfloat16, device="meta")
    batch = SimpleNamespace(num_tokens=num_tokens, vocab_size=vocab_size, weight_VH=weight_VH, dtype=weight_VH.dtype)
    assert triton_host._chunk_rows(batch, Needs(weight=needs_weight)) == rows
