"""The Triton backend on a GPU, against float64: what the interpreter cannot show, and all that it can once more."""

import pytest
import torch

from postmill.kernels.loss_scale_ce.api import choose_backend, loss_scale_ce
from postmill.kernels.loss_scale_ce.probe import probe

from .loss_problem import (
    GRID,
    bar,
    deviations,
    extreme,
    inserted_rows,
    leaves,
    nan_and_out_of_range,
    one_row,
    poison_skipped,
    problem,
    relative,
    zero,
)

triton_host = pytest.importorskip("postmill.kernels.loss_scale_ce.triton_host", reason="triton is not installed")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.timeout(600),  # seconds a compilation, and each case has its own
]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {F32: 1e-5, F16: 1.5e-3, BF16: 1.6e-2}
"""Of the largest entry. Three tf32 products leave 2^-21 or so; below float32 dz is rounded before the products, and the
result once more."""
SIZES = [(1, 1, 2), (130, 33, 1031), (16, 64, 4099), (300, 72, 5000), (513, 264, 2049)]


def assert_close(found, dtype, **limits):
    for what, deviation in found.items():
        limit = limits.get(what, 1e-5 if what in ("loss", "value") else TOLERANCE[dtype])
        assert deviation <= limit, (what, deviation, found)


def on_gpu(*size, dtype=BF16, **options):
    """Leaves hidden, weight, bias; targets and weights."""
    *tensors, targets, weights = problem(*size, dtype=dtype, **options)
    return leaves(*(t.cuda() for t in tensors)), targets.cuda(), weights.cuda()


def loss_and_gradients(tensors, targets, weights, **options):
    hidden, weight, bias = tensors
    out = loss_scale_ce(hidden, weight, targets, weights, normaliser=7.5, bias_V=bias, backend="triton", **options)
    return [out.loss, *torch.autograd.grad(out.loss, tensors)]


def test_auto_takes_triton():
    assert choose_backend("auto", torch.zeros(2, 3, device="cuda")) == "triton"
    assert choose_backend("auto", torch.zeros(2, 3, device="cuda", dtype=torch.float64)) == "reference"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", GRID, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_every_option(dtype, options):
    assert_close(deviations(dtype, device="cuda", **options), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["loss", "logp and entropy"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_shapes(dtype, rows, size):
    # In the smallest a gradient is the difference of two products, and nothing averages out their roundings.
    loose = dict.fromkeys(("hidden", "weight", "bias"), 4 * TOLERANCE[dtype]) if size == SIZES[0] else {}
    assert_close(deviations(dtype, device="cuda", size=size, active=2.0, rows=rows), dtype, **loose)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_logp_and_entropy_with_a_cap_and_a_scale(dtype):
    assert_close(deviations(dtype, device="cuda", rows=True, softcap=3.0, logit_scale=0.5), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [False, True], ids=["loss", "logp and entropy"])
@pytest.mark.parametrize("change", [poison_skipped, zero, one_row, bar], ids=lambda f: f.__name__)
def test_awkward_batches(dtype, rows, change):
    assert_close(deviations(dtype, device="cuda", change=change, rows=rows), dtype)


def test_extreme_logits():
    # A float32 logit of 1e4 carries an error of up to 1e-3, and so does p where two of them compete.
    loose = dict.fromkeys(("hidden", "weight", "bias"), 5e-3)
    assert_close(deviations(F32, device="cuda", change=extreme), F32, **loose)
    assert_close(deviations(BF16, device="cuda", change=extreme), BF16)


@pytest.mark.parametrize("rows", [False, True], ids=["loss", "logp and entropy"])
def test_a_frozen_head_gets_no_gradient(rows):
    assert_close(deviations(BF16, device="cuda", frozen=True, rows=rows, size=(130, 72, 1031)), BF16)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("active", [0.1, 2.0], ids=["few", "all"])
def test_chunks_of_rows_and_slices_of_the_vocabulary(dtype, active, monkeypatch):
    size = (700, 24, 1031)
    monkeypatch.setattr(triton_host, "FEWEST_STORED_ROWS", 1)
    monkeypatch.setattr(triton_host, "STORE_BYTES", 128 * size[2] * dtype.itemsize)
    assert_close(deviations(dtype, device="cuda", size=size, active=active, label_smoothing=0.1), dtype)
    monkeypatch.setattr(triton_host, "FEWEST_STORED_ROWS", 1 << 30)
    monkeypatch.setattr(triton_host, "STORE_BYTES", 0)
    monkeypatch.setattr(triton_host, "SLICE_BYTES", 1)
    assert_close(deviations(dtype, device="cuda", size=size, active=active, label_smoothing=0.1), dtype)


def test_nan_and_a_target_outside_the_vocabulary_surface_as_nan():
    found = nan_and_out_of_range("cuda")
    assert found.pop("outside")[0]
    assert all(found[where] == [True, True] for where in ("hidden", "head", "weights"))


def test_inserted_rows_of_weight_zero_change_no_bit_even_when_they_are_nan():
    assert inserted_rows("cuda") == {"equal": True, "clean": True}


@pytest.mark.parametrize("rows", [False, True], ids=["loss", "logp"])
def test_two_calls_and_another_stream_give_the_same_bits(rows):
    given = on_gpu(1500, 264, 5003, active=0.7)
    first = loss_and_gradients(*given, return_logp=rows)
    second = loss_and_gradients(*given, return_logp=rows)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        third = loss_and_gradients(*given, return_logp=rows)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, third, strict=True))


@pytest.mark.parametrize("num_active", [0, 1, 127, 128, 129, 700, 1100])
def test_any_number_of_tiles_is_spread_over_the_chip(num_active):
    """dX is summed in parts of the vocabulary, whose number depends on how many rows turn out to be active."""

    def change(tensors, targets, weights):
        weights[:] = 0
        weights[5 : 5 + num_active] = torch.linspace(0.5, 2, num_active)
        targets[:] = targets.abs()

    assert_close(deviations(BF16, device="cuda", size=(1200, 264, 5003), change=change), BF16)


@pytest.mark.parametrize("options", [{}, {"return_logp": True, "return_entropy": True}, {"softcap": 5.0}], ids=str)
def test_nothing_waits_for_the_device(options):
    given = on_gpu(64, 24, 251)
    loss_and_gradients(*given, **options)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_and_gradients(*given, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rows", [False, True], ids=["loss", "logp"])
def test_compile_sees_through(rows):
    tensors, targets, weights = on_gpu(64, 24, 251, dtype=F32)

    def value(hidden, weight, bias):
        out = loss_scale_ce(hidden * 2, weight, targets, weights, normaliser=7.5, bias_V=bias, return_logp=rows)
        return out.loss * 2 + (out.logp_T.square().sum() if rows else 0)

    want = value(*tensors)
    got = torch.compile(value, fullgraph=True)(*tensors)
    torch.testing.assert_close(got, want)
    pairs = zip(torch.autograd.grad(got, tensors), torch.autograd.grad(want, tensors), strict=True)
    assert all(relative(a, b) <= 1e-6 for a, b in pairs)


@pytest.mark.parametrize("factor", [1.0, -3.0])
def test_upstream_gradient_scales(factor):
    tensors, targets, weights = on_gpu(64, 24, 251)
    _, *once = loss_and_gradients(tensors, targets, weights)
    hidden, weight, bias = tensors
    out = loss_scale_ce(hidden, weight, targets, weights, normaliser=7.5, bias_V=bias)
    (out.loss * factor).backward()
    assert all(torch.equal(t.grad, (factor * g.float()).to(g.dtype)) for t, g in zip(tensors, once, strict=True))


@pytest.mark.parametrize("rows", [False, True], ids=["loss", "logp"])
def test_strided_and_misaligned_inputs(rows):
    (hidden, weight, bias), targets, weights = on_gpu(130, 40, 1031)
    want = loss_and_gradients((hidden, weight, bias), targets, weights, return_logp=rows)
    flat = torch.empty(weight.numel() + 1, dtype=BF16, device="cuda")
    misaligned = flat[1:].view_as(weight).copy_(weight.detach()).detach()
    wide = torch.full((len(weight), 48), torch.nan, dtype=BF16, device="cuda")
    for head in (misaligned, weight.detach().T.contiguous().T, wide[:, :40].copy_(weight.detach()).detach()):
        strided = (
            hidden.detach().T.contiguous().T.requires_grad_(),
            head.requires_grad_(),
            torch.stack([bias.detach()] * 2, 1)[:, 0].requires_grad_(),
        )
        spread = (torch.stack([t, torch.zeros_like(t)], 1)[:, 0] for t in (targets, weights))
        got = loss_and_gradients(strided, *spread, return_logp=rows)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_float16_gradient_survives_a_large_denominator():
    (hidden, weight, _), targets, weights = on_gpu(130, 40, 1031, dtype=F16)
    exact = leaves(hidden, weight, dtype=torch.float64)
    options = {"normaliser": 1e5}
    got = torch.autograd.grad(loss_scale_ce(hidden, weight, targets, weights, **options).loss * 1e4, (hidden, weight))
    want = torch.autograd.grad(loss_scale_ce(*exact, targets, weights, **options).loss * 1e4, exact)
    assert all(relative(a, b) <= TOLERANCE[F16] for a, b in zip(got, want, strict=True))


def test_offsets_beyond_two_to_the_31():
    """E and the head both have more than 2^31 entries; the last rows of each are checked."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of free GPU memory")
    num_tokens, hidden_size, vocab_size, last = 3712, 4096, 600_008, 8
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, device="cuda", dtype=BF16).requires_grad_()
    weight = torch.empty(vocab_size, hidden_size, device="cuda", dtype=BF16).normal_(0, hidden_size**-0.5)
    targets = torch.randint(vocab_size, (num_tokens,), device="cuda")
    targets[-last:] = vocab_size - 1 - torch.arange(last, device="cuda")
    weights = torch.rand(num_tokens, device="cuda") + 0.5
    loss = loss_scale_ce(hidden, weight.requires_grad_(), targets, weights, normaliser=1.0).loss
    d_hidden, d_weight = torch.autograd.grad(loss, (hidden, weight))
    with torch.no_grad():
        lse = torch.cat([(x @ weight.T).float().logsumexp(-1) for x in hidden.split(256)])
        p_LV = (hidden[-last:] @ weight.T).float().sub_(lse[-last:, None]).exp_()
        p_LV[torch.arange(last), targets[-last:]] -= 1
        want_hidden = (p_LV * weights[-last:, None]) @ weight.float()
        p_TL = (hidden @ weight[-last:].T).float().sub_(lse[:, None]).exp_()
        p_TL -= (targets[:, None] == torch.arange(vocab_size - last, vocab_size, device="cuda")).float()
        want_weight = (p_TL * weights[:, None]).T @ hidden.float()
    assert relative(d_hidden[-last:], want_hidden) <= TOLERANCE[BF16]
    assert relative(d_weight[-last:], want_weight) <= TOLERANCE[BF16]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_probe_accepts_it(dtype):
    (hidden, weight, bias), targets, weights = on_gpu(130, 64, 1031, dtype=dtype)
    deviation = probe("auto", hidden, weight, targets, weights, normaliser=3.0, bias_V=bias)
    assert deviation.backend == "triton"
    assert deviation.is_acceptable, deviation.describe()
