"""A vocabulary in slices gives the loss and gradients of the whole, in one process and in two."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from postmill.kernels.loss_scale_ce import cpp, ops
from postmill.kernels.loss_scale_ce.api import loss_scale_ce
from postmill.kernels.loss_scale_ce.terms import Head, LossShape, select_rows, weighted_loss
from postmill.kernels.loss_scale_ce.vocab_parallel import join_shards, shard_rows

from .loss_problem import OPTIONS, assert_gradients_close, leaves, problem

BACKENDS = ["reference", pytest.param("cpp", marks=pytest.mark.skipif(cpp.native() is None, reason="no postmill._C"))]


def whole(tensors, targets, weights, backend):
    hidden, weight, bias = tensors
    return loss_scale_ce(
        hidden,
        weight,
        targets,
        weights,
        normaliser=3.0,
        bias_V=bias,
        backend=backend,
        return_logp=True,
        return_entropy=True,
        return_correct=True,
        **OPTIONS,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [(0, 251), (0, 100, 251), (0, 1, 2, 250, 251)], ids=str)
def test_slices_join_to_the_whole(backend, cuts):
    *tensors, targets, weights = problem()
    want_from, got_from = leaves(*tensors), leaves(*tensors)
    want = whole(want_from, targets, weights, backend)
    hidden, weight, bias = got_from
    rows = select_rows(targets, weights, 3.0, torch.float64)
    shards = []
    for v0, v1 in itertools.pairwise(cuts):
        head = Head(weight[v0:v1], bias[v0:v1], softcap=OPTIONS["softcap"])
        stats = ops.row_stats(hidden, head, shard_rows(rows, v0, v1 - v0), want_sums=True, backend=backend)
        shards.append(torch.stack(stats._replace(mean_T=stats.mean_T * (v1 - v0))))
    stats = join_shards(shards, rows, len(weight))
    loss = weighted_loss(stats, rows, LossShape(OPTIONS["label_smoothing"], OPTIONS["z_loss"]))
    torch.testing.assert_close(loss, want.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(stats.target_T - stats.lse_T, want.logp_T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stats.lse_T - stats.expected_T, want.entropy_T, rtol=1e-11, atol=1e-12)
    got_grads = torch.autograd.grad(loss + (stats.lse_T - stats.expected_T).sum(), got_from)
    assert_gradients_close(got_grads, torch.autograd.grad(want.loss + want.entropy_T.sum(), want_from), 1e-10)


def test_two_processes_equal_one(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    script = Path(__file__).parent / "vocab_parallel_rank.py"
    ranks = [subprocess.Popen([sys.executable, script, str(rank), tmp_path], env=environment) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    *tensors, targets, weights = problem()
    exact = leaves(*tensors)
    want = whole(exact, targets, weights, "reference")
    (want.loss + (want.logp_T * 0.5).sum()).backward()
    for got in (first, second):
        torch.testing.assert_close(got[0], want.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(got[1], want.logp_T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got[2], want.entropy_T, rtol=1e-11, atol=1e-12)
        assert torch.equal(got[3], want.correct_T)
        assert_gradients_close([got[4]], [exact[0].grad], 1e-10)
    joined = [torch.cat([a, b]) for a, b in zip(first[5:], second[5:], strict=True)]
    assert_gradients_close(joined, [exact[1].grad, exact[2].grad], 1e-10)
