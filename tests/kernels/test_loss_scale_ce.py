"""The reference and the loss formula, against torch's own cross-entropy in float64 and finite differences."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from postmill.kernels.loss_scale_ce import reference
from postmill.kernels.loss_scale_ce.api import loss_scale_ce
from postmill.kernels.loss_scale_ce.terms import Head, active_rows


def problem(num_tokens=37, hidden_size=19, vocab_size=251, *, dtype=torch.float64, active=0.5, seed=0):
    """A batch with ignored targets, zero, negative and fractional weights."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, hidden_size, generator=g, dtype=torch.float64).to(dtype)
    weight = (torch.randn(vocab_size, hidden_size, generator=g, dtype=torch.float64) / 2).to(dtype)
    bias = torch.randn(vocab_size, generator=g, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocab_size, (num_tokens,), generator=g)
    weights = torch.randn(num_tokens, generator=g, dtype=torch.float64)
    weights[torch.rand(num_tokens, generator=g) > active] = 0
    targets[torch.rand(num_tokens, generator=g) > 0.9] = -100
    return hidden, weight, bias, targets, weights


def eager_loss(
    hidden,
    weight,
    bias,
    targets,
    weights,
    denominator,
    *,
    logit_scale=1.0,
    softcap=None,
    label_smoothing=0.0,
    z_loss=0.0,
):
    """The formula the long way, all logits at once, on torch's cross_entropy."""
    z = F.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    nll = F.cross_entropy(z, targets, reduction="none", label_smoothing=label_smoothing, ignore_index=-100)
    penalty = z_loss * torch.logsumexp(z, -1).square() * (targets != -100)
    return ((nll + penalty) * weights).sum() / denominator


GRID = [
    {"logit_scale": s, "softcap": c, "label_smoothing": e, "z_loss": z}
    for s, c, e, z in itertools.product([1.0, 0.37], [None, 3.0], [0.0, 0.1], [0.0, 1e-2])
]


@pytest.mark.parametrize("options", GRID, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_reference_equals_torch_cross_entropy(options):
    hidden, weight, bias, targets, weights = problem()
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    loss = loss_scale_ce(hidden, weight, targets, weights, denominator=7.5, bias_V=bias, backend="reference", **options)
    expected = eager_loss(hidden, weight, bias, targets, weights, 7.5, **options)
    torch.testing.assert_close(loss.loss, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad(loss.loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_reference_chunks_do_not_change_the_gradient():
    hidden, weight, bias, targets, weights = problem()
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    active = active_rows(targets, weights)
    grads = []
    for chunk_rows in (1, 5, 1000):
        stats = reference.row_stats(hidden, Head(weight, bias, softcap=4.0), targets, active, chunk_rows=chunk_rows)
        value = (stats.lse_T - stats.target_T + stats.mean_T * stats.expected_T).sum()
        grads.append(torch.autograd.grad(value, leaves))
    for other in grads[:2]:
        for got, want in zip(other, grads[2], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_reference_gradcheck():
    hidden, weight, bias, targets, weights = problem(6, 4, 11, active=0.7)

    def value(hidden, weight, bias):
        out = loss_scale_ce(
            hidden,
            weight,
            targets,
            weights,
            denominator=3.0,
            bias_V=bias,
            softcap=5.0,
            label_smoothing=0.1,
            z_loss=0.01,
            return_logp=True,
            return_entropy=True,
            backend="reference",
        )
        return out.loss, out.logp_T, out.entropy_T

    assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in (hidden, weight, bias)])


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
def test_inputs_that_do_not_fit_are_refused(change, message):
    arguments = {
        "hidden_TH": torch.zeros(4, 3),
        "weight_VH": torch.zeros(5, 3),
        "targets_T": torch.tensor([0, 1, 4, 2]),
        "token_weights_T": torch.ones(4),
        "denominator": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        loss_scale_ce(**(arguments | change))
