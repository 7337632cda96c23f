"""Every backend that runs on a CPU against torch's own cross-entropy in float64, and the laws the loss must keep."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from postmill.kernels.loss_scale_ce import cpp, ops, reference
from postmill.kernels.loss_scale_ce.api import choose_backend, loss_scale_ce
from postmill.kernels.loss_scale_ce.terms import Head, select_rows

from .loss_problem import GRID, TOLERANCE, assert_gradients_close, eager_loss, leaves, problem

needs_cpp = pytest.mark.skipif(cpp.native() is None, reason="postmill._C is not built")
BACKENDS = ["reference", pytest.param("cpp", marks=needs_cpp)]
SIZES = [(37, 19, 251), (1, 1, 2), (130, 33, 1031), (16, 64, 4099)]


def loss_and_gradients(backend, tensors, targets, weights, normaliser=7.5, **options):
    hidden, weight, bias = tensors
    out = loss_scale_ce(
        hidden, weight, targets, weights, normaliser=normaliser, bias_V=bias, backend=backend, **options
    )
    return out.loss, torch.autograd.grad(out.loss, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("options", GRID, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_equals_cross_entropy_in_float64(backend, dtype, options):
    *tensors, targets, weights = problem(dtype=dtype)
    exact = leaves(*tensors, dtype=torch.float64)
    want = eager_loss(*exact, targets, weights, 7.5, **options)
    loss, grads = loss_and_gradients(backend, leaves(*tensors), targets, weights, **options)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss.double(), want, rtol=min(TOLERANCE[dtype], 5e-6), atol=1e-7)
    assert_gradients_close(grads, torch.autograd.grad(want, exact), TOLERANCE[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_shapes_in_float32(backend, size):
    *tensors, targets, weights = problem(*size, dtype=torch.float32, active=0.8, seed=3)
    weights[0], targets[0] = 1.5, size[2] - 1
    exact = leaves(*tensors, dtype=torch.float64)
    want = eager_loss(*exact, targets, weights, 7.5)
    loss, grads = loss_and_gradients(backend, leaves(*tensors), targets, weights)
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=1e-6)
    assert_gradients_close(grads, torch.autograd.grad(want, exact), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logp_entropy_and_correct_equal_log_softmax(backend):
    hidden, weight, bias, targets, weights = problem(dtype=torch.float64)
    weights[3], targets[3] = 1.0, int(F.linear(hidden[3], weight, bias).argmax())
    tensors, exact = leaves(hidden, weight, bias), leaves(hidden, weight, bias)
    active = (weights != 0) & (targets >= 0)
    out = loss_scale_ce(
        tensors[0],
        tensors[1],
        targets,
        weights,
        normaliser=1.0,
        bias_V=tensors[2],
        backend=backend,
        return_logp=True,
        return_entropy=True,
        return_correct=True,
    )
    logp_TV = F.linear(*exact).log_softmax(-1)
    logp = torch.where(active, logp_TV.gather(1, targets.clamp(min=0)[:, None]).squeeze(1), 0)
    entropy = torch.where(active, -(logp_TV.exp() * logp_TV).sum(-1), 0)
    torch.testing.assert_close(out.logp_T, logp, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.entropy_T, entropy, rtol=1e-11, atol=1e-12)
    assert out.correct_T.tolist() == (active & (logp_TV.argmax(-1) == targets)).tolist()
    assert out.correct_T.any()
    # A policy gradient: any function of both, through both.
    upstream = torch.randn(2, len(targets), dtype=torch.float64)
    got = torch.autograd.grad((upstream[0] * out.logp_T + upstream[1] * out.entropy_T).sum() + out.loss, tensors)
    value = (upstream[0] * logp + upstream[1] * entropy).sum() - (logp * weights).sum()
    assert_gradients_close(got, torch.autograd.grad(value, exact), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cap", [None, 3.0])
def test_statistics_of_rows_without_weight_at_a_temperature(backend, cap):
    """What RL asks of the head: log-prob, log-sum-exp, entropy and collision where the mask is, weights or not."""
    *tensors, targets, weights = problem(dtype=torch.float64)
    got, exact = leaves(*tensors), leaves(*tensors)
    active = torch.arange(len(targets)) % 3 != 0
    scored = (active | (weights != 0)) & (targets >= 0)
    assert (scored & (weights == 0)).any()
    out = loss_scale_ce(
        got[0],
        got[1],
        targets,
        weights,
        normaliser=2.0,
        bias_V=got[2],
        logit_scale=0.7,
        softcap=cap,
        temperature=0.6,
        active_T=active,
        backend=backend,
        return_logp=True,
        return_entropy=True,
        return_lse=True,
        return_collision=True,
    )
    z = F.linear(*exact) * 0.7
    z = (z if cap is None else cap * torch.tanh(z / cap)) / 0.6
    logp_TV = z.log_softmax(-1)
    logp = logp_TV.gather(1, targets.clamp(min=0)[:, None]).squeeze(1)
    want = {
        "logp_T": logp,
        "lse_T": z.logsumexp(-1),
        "entropy_T": -(logp_TV.exp() * logp_TV).sum(-1),
        "collision_T": (2 * logp_TV).logsumexp(-1),
    }
    for name, value in want.items():
        torch.testing.assert_close(getattr(out, name), torch.where(scored, value, 0), rtol=1e-11, atol=1e-12)
    assert not out.collision_T.requires_grad
    loss = -(torch.where(scored, logp, 0) * weights).sum() / 2
    torch.testing.assert_close(out.loss, loss, rtol=1e-11, atol=0)
    upstream = torch.randn(3, len(targets), dtype=torch.float64)
    value = (upstream[0] * out.logp_T + upstream[1] * out.lse_T + upstream[2] * out.entropy_T).sum() + out.loss
    pieces = [torch.where(scored, want[name], 0) for name in ("logp_T", "lse_T", "entropy_T")]
    exact_value = sum((u * piece).sum() for u, piece in zip(upstream, pieces, strict=True)) + loss
    assert_gradients_close(torch.autograd.grad(value, got), torch.autograd.grad(exact_value, exact), 1e-10)


def test_a_temperature_is_above_zero():
    hidden, weight, _, targets, weights = problem()
    with pytest.raises(ValueError, match="temperature: 0 is not above 0"):
        loss_scale_ce(hidden, weight, targets, weights, normaliser=1.0, temperature=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_through_every_output(backend):
    hidden, weight, bias, targets, weights = problem(6, 4, 11, active=0.7)
    options = {"softcap": 5.0, "label_smoothing": 0.1, "z_loss": 0.01, "return_logp": True, "return_entropy": True}

    def value(hidden, weight, bias):
        out = loss_scale_ce(hidden, weight, targets, weights, normaliser=3.0, bias_V=bias, backend=backend, **options)
        return out.loss, out.logp_T, out.entropy_T

    assert torch.autograd.gradcheck(value, leaves(hidden, weight, bias))


@needs_cpp
def test_gradcheck_of_the_fused_operator():
    *tensors, targets, weights = problem(6, 4, 11, active=0.7)
    rows = select_rows(targets, weights, 3.0, torch.float64)
    options = {"scale": 0.7, "softcap": 5.0, "label_smoothing": 0.1, "z_loss": 0.01, "needs": [True] * 3}

    def value(*tensors):
        return ops._fused_loss(*tensors, *rows, **options, backend="cpp")[0]

    assert torch.autograd.gradcheck(value, leaves(*tensors))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normaliser", [0.0, 3.0, torch.tensor(0.0)], ids=str)
def test_no_active_row_is_zero_with_zero_gradients(backend, normaliser):
    *tensors, targets, weights = problem(dtype=torch.float32)
    for t, w in ((targets, torch.zeros_like(weights)), (torch.full_like(targets, -100), weights)):
        loss, grads = loss_and_gradients(backend, leaves(*tensors), t, w, normaliser)
        assert loss.item() == 0
        assert all(not g.any() and g.shape == x.shape for g, x in zip(grads, tensors, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_active_row(backend):
    *tensors, targets, weights = problem(dtype=torch.float32)
    weights.zero_()
    weights[5], targets[5] = -2.5, 7
    exact = leaves(*tensors, dtype=torch.float64)
    want = eager_loss(*exact, targets, weights, 1.0)
    loss, grads = loss_and_gradients(backend, leaves(*tensors), targets, weights, 1.0)
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=0)
    assert_gradients_close(grads, torch.autograd.grad(want, exact), 5e-6)
    assert grads[0][5].any()
    assert not grads[0][:5].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_weight_zero_change_nothing_even_when_they_are_nan(backend):
    *tensors, targets, weights = problem(dtype=torch.float32)
    hidden, weight, bias = tensors
    loss, grads = loss_and_gradients(backend, leaves(hidden, weight, bias), targets, weights)
    keep = torch.arange(len(targets)) * 2
    wide = torch.full((2 * len(targets), hidden.shape[1]), torch.nan)
    wide_targets = torch.randint(len(weight), (len(wide),))
    wide_weights = torch.zeros(len(wide))
    wide[keep], wide_targets[keep], wide_weights[keep] = hidden, targets, weights
    wide_loss, wide_grads = loss_and_gradients(backend, leaves(wide, weight, bias), wide_targets, wide_weights)
    assert wide_loss == loss
    assert torch.equal(wide_grads[0][keep], grads[0])
    assert not wide_grads[0][1::2].any()
    assert torch.equal(wide_grads[1], grads[1])
    assert torch.equal(wide_grads[2], grads[2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", ["hidden", "head", "weights"])
def test_nan_in_an_active_row_is_not_hidden(backend, where):
    *tensors, targets, weights = problem(dtype=torch.float32)
    row = int(((weights != 0) & (targets >= 0)).nonzero()[0])
    if where == "hidden":
        tensors[0][row, 3] = torch.nan
    elif where == "head":
        tensors[1][11, 2] = torch.nan
    else:
        weights[row] = torch.nan
    out = loss_scale_ce(tensors[0], tensors[1], targets, weights, normaliser=2.0, backend=backend, return_correct=True)
    assert out.loss.isnan()
    assert where == "weights" or not out.correct_T[row]
    loss, grads = loss_and_gradients(backend, leaves(*tensors), targets, weights)
    assert loss.isnan()
    assert grads[0][row].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-3), (torch.bfloat16, 1.3e-2)], ids=str)
def test_extreme_logits(backend, dtype, tolerance):
    *tensors, targets, weights = problem(dtype=dtype, active=0.9)
    tensors[0] *= 4000.0  # logits of about 1e4 either way
    exact = leaves(*tensors, dtype=torch.float64)
    want = eager_loss(*exact, targets, weights, 7.5)
    loss, grads = loss_and_gradients(backend, leaves(*tensors), targets, weights)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    # A float32 logit of 1e4 carries an error of up to 1e-3, and so does p where two of them compete. bfloat16 rounds
    # the gradients to 8 bits besides.
    assert_gradients_close(grads, torch.autograd.grad(want, exact), tolerance)


@needs_cpp
def test_cpp_exp_is_within_two_ulp():
    """The pass that writes gradients gives exp(z - 0) itself where its factors are 0, 1, 0, 0, 0."""
    num_columns = 50  # whole vectors and a rest
    steps = torch.linspace(-87.3, 0, 999_995)
    z_VT = torch.cat([steps, torch.tensor([-87.34, -104.0, -1e30, -torch.inf, torch.nan])]).view(-1, num_columns)
    out_VT, target_T = torch.empty_like(z_VT), torch.full((num_columns,), -1)
    factors_5T = torch.tensor([0.0, 1, 0, 0, 0], dtype=torch.float64)[:, None].repeat(1, num_columns)
    pointers = (z_VT.data_ptr(), len(z_VT), num_columns, 0, target_T.data_ptr(), factors_5T.data_ptr())
    cpp.native().loss_scale_ce_gradient_f32(*pointers, 0.0, False, out_VT.data_ptr(), 1)
    got, exact = out_VT.flatten(), steps.double().exp()
    ulp = torch.nextafter(exact.float(), torch.tensor(torch.inf)).double() - exact.float().double()
    assert float(((got[:-5].double() - exact) / ulp).abs().max()) <= 2
    assert got[-5:-1].tolist() == [0.0] * 4
    assert got[-1].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_barred_vocabulary_entries(backend):
    *tensors, targets, weights = problem(dtype=torch.float64)
    tensors[2][:150] = -torch.inf
    targets = torch.where(targets >= 0, targets.clamp(min=150), targets)
    got, want = leaves(*tensors), leaves(*tensors)
    out = loss_scale_ce(
        got[0], got[1], targets, weights, normaliser=2.0, bias_V=got[2], backend=backend, return_entropy=True
    )
    expected = eager_loss(*want, targets, weights, 2.0)
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=0)
    assert_gradients_close(torch.autograd.grad(out.loss, got), torch.autograd.grad(expected, want), 1e-10)
    assert torch.isfinite(out.entropy_T).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_parts_get_no_gradient(backend):
    hidden, weight, bias, targets, weights = problem(dtype=torch.float32)
    full, grads = loss_and_gradients(backend, leaves(hidden, weight, bias), targets, weights)
    for i, name in enumerate(("hidden_TH", "weight_VH", "bias_V")):
        arguments = {"hidden_TH": hidden, "weight_VH": weight, "bias_V": bias}
        arguments[name] = arguments[name].clone().requires_grad_()
        out = loss_scale_ce(**arguments, targets_T=targets, token_weights_T=weights, normaliser=7.5, backend=backend)
        assert out.loss == full
        out.loss.backward()
        torch.testing.assert_close(arguments[name].grad, grads[i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_gradient_scales(backend):
    *tensors, targets, weights = problem(dtype=torch.float32)
    once, twice = leaves(*tensors), leaves(*tensors)
    _, grads = loss_and_gradients(backend, once, targets, weights)
    out = loss_scale_ce(twice[0], twice[1], targets, weights, normaliser=7.5, bias_V=twice[2], backend=backend)
    (out.loss * -3.0).backward()
    assert_gradients_close([t.grad for t in twice], [-3.0 * g for g in grads], 1e-6)


def test_reference_chunks_do_not_change_the_gradient():
    *tensors, targets, weights = problem()
    hidden, weight, bias = leaves(*tensors)
    rows = select_rows(targets, weights, 1.0, torch.float64)
    grads = []
    for chunk_rows in (1, 5, 1000):
        stats = reference.row_stats(hidden, Head(weight, bias, softcap=4.0), rows, chunk_rows=chunk_rows)
        value = (stats.lse_T - stats.target_T + stats.mean_T * stats.expected_T).sum()
        grads.append(torch.autograd.grad(value, [hidden, weight, bias]))
    for other in grads[:2]:
        assert_gradients_close(other, grads[2], 1e-11)


@needs_cpp
@pytest.mark.parametrize("rows", [False, True], ids=["fused", "recomputed"])
def test_cpp_blocks_tiles_and_threads_do_not_change_the_result(rows, monkeypatch):
    *tensors, targets, weights = problem(150, 19, 1031, dtype=torch.float32, active=0.9)

    def run():
        return loss_and_gradients("cpp", leaves(*tensors), targets, weights, return_logp=rows, label_smoothing=0.1)

    loss, grads = run()
    threads = torch.get_num_threads()
    try:
        for arena, tile, stream, num_threads in ((1, 1, 16, 1), (40 * 1031 * 4, 1 << 16, 48, 3)):
            monkeypatch.setattr(cpp, "ARENA_BYTES", arena)
            monkeypatch.setattr(cpp, "TILE_BYTES", tile)
            monkeypatch.setattr(cpp, "STREAM_ROWS", stream)
            torch.set_num_threads(num_threads)
            other_loss, other_grads = run()
            torch.testing.assert_close(other_loss, loss, rtol=1e-6, atol=0)
            assert_gradients_close(other_grads, grads, 2e-6)
    finally:
        torch.set_num_threads(threads)


@needs_cpp
def test_cpp_backward_twice_says_so():
    *tensors, targets, weights = problem(dtype=torch.float32)
    hidden, weight, _ = leaves(*tensors)
    out = loss_scale_ce(hidden, weight, targets, weights, normaliser=1.0, backend="cpp")
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice"):
        out.loss.backward()


@needs_cpp
@pytest.mark.parametrize("rows", [False, True], ids=["fused", "recomputed"])
def test_compile_sees_through(rows):
    *tensors, targets, weights = problem(dtype=torch.float32)

    def value(hidden, weight, bias):
        out = loss_scale_ce(
            hidden, weight, targets, weights, normaliser=7.5, bias_V=bias, backend="cpp", return_logp=rows
        )
        return out.loss * 2 + (out.logp_T.square().sum() if rows else 0)

    eager, compiled = leaves(*tensors), leaves(*tensors)
    want = value(*eager)
    got = torch.compile(value, fullgraph=True, backend="aot_eager")(*compiled)
    torch.testing.assert_close(got, want)
    assert_gradients_close(torch.autograd.grad(got, compiled), torch.autograd.grad(want, eager), 1e-6)


@needs_cpp
@pytest.mark.parametrize("rows", [False, True], ids=["fused", "recomputed"])
def test_operators_pass_torchs_own_check(rows):
    *tensors, targets, weights = problem(9, 5, 13)
    active = (weights != 0) & (targets >= 0)
    options = {"scale": 1.0, "softcap": None, "backend": "cpp"}
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    if rows:
        torch.library.opcheck(
            ops._row_stats, (*leaves(*tensors), targets, active), options | {"want_sums": True}, test_utils=checks
        )
    else:
        extra = {"label_smoothing": 0.1, "z_loss": 0.0, "needs": [True, True, True]}
        weights = torch.where(active, weights, 0).double()
        torch.library.opcheck(
            ops._fused_loss, (*leaves(*tensors), targets, active, weights), options | extra, test_utils=checks
        )


def test_auto_takes_what_runs_here(caplog):
    hidden = torch.zeros(2, 3)
    assert choose_backend("auto", hidden) == ("reference" if cpp.native() is None else "cpp")
    with pytest.raises(ValueError, match=r'backend "triton" cannot run: it needs CUDA tensors'):
        choose_backend("triton", hidden)


def test_importing_the_interface_loads_no_triton():
    code = "import sys, postmill.kernels.loss_scale_ce.api; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets_T": torch.zeros(4, dtype=torch.int32)}, "targets_T: dtype is torch.int32, expected torch.int64"),
        ({"targets_T": torch.tensor([0, 1, 5, 2])}, "targets_T: 5 is outside the vocabulary of 5"),
        ({"token_weights_T": torch.ones(3)}, r"token_weights_T: shape is \(3,\), expected \(4,\)"),
        ({"token_weights_T": torch.ones(4, requires_grad=True)}, "token_weights_T: requires grad"),
        ({"weight_VH": torch.zeros(5, 3, dtype=torch.bfloat16)}, "expected one floating dtype"),
        ({"weight_VH": torch.zeros(5, 2)}, r"expected \(T, H\) and \(V, H\)"),
        ({"softcap": 0.0}, "softcap: 0.0 is not above 0"),
        ({"label_smoothing": 1.5}, "label_smoothing: 1.5"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(backend, change, message):
    arguments = {
        "hidden_TH": torch.zeros(4, 3),
        "weight_VH": torch.zeros(5, 3),
        "targets_T": torch.tensor([0, 1, 4, 2]),
        "token_weights_T": torch.ones(4),
        "normaliser": 1.0,
        "backend": backend,
    }
    with pytest.raises(ValueError, match=message):
        loss_scale_ce(**(arguments | change))
