"""The probe sees a backend that is wrong, and passes one that is right."""

import math

import pytest
import torch

from postmill.kernels.loss_scale_ce import cpp
from postmill.kernels.loss_scale_ce.probe import probe

from .loss_problem import problem

needs_cpp = pytest.mark.skipif(cpp.native() is None, reason="postmill._C is not built")


@needs_cpp
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_right_backend_is_acceptable(dtype, frozen):
    hidden, weight, bias, targets, weights = problem(dtype=dtype, active=0.9)
    weight.requires_grad_(not frozen)
    deviation = probe("cpp", hidden, weight, targets, weights, normaliser=3.0, bias_V=bias, softcap=3.0)
    assert deviation.is_acceptable, deviation.describe()
    assert deviation.hidden_gradient > 0 or dtype != torch.float32
    assert weight.grad is None


@needs_cpp
def test_a_wrong_backend_is_not(monkeypatch):
    hidden, weight, _, targets, weights = problem(dtype=torch.float32, active=0.9)
    right = cpp.loss_coefficients

    def wrong(*arguments):
        coefficients = right(*arguments)
        return coefficients._replace(b_T=coefficients.b_T * 1.01)

    monkeypatch.setattr(cpp, "loss_coefficients", wrong)
    deviation = probe("cpp", hidden, weight, targets, weights, normaliser=3.0)
    assert not deviation.is_acceptable
    assert deviation.loss < 1e-5 < 1e-3 < deviation.hidden_gradient
    assert "cpp differs from the reference by" in deviation.describe()


@needs_cpp
def test_nan_is_not_acceptable_and_no_active_row_is():
    hidden, weight, _, targets, weights = problem(dtype=torch.float32, active=0.9)
    assert probe("cpp", hidden, weight, targets, weights * 0, normaliser=3.0).is_acceptable
    hidden[weights.nonzero()[0]] = torch.nan
    deviation = probe("cpp", hidden, weight, targets.clamp(min=0), weights, normaliser=3.0)
    assert math.isnan(deviation.loss)
    assert not deviation.is_acceptable
