"""Logits of chosen entries against the full product, in float64."""

import pytest

torch = pytest.importorskip("torch")

from postmill.kernels import gather_logits as module  # noqa: E402
from postmill.kernels.gather_logits import gather_logits  # noqa: E402


def problem(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((9, 5), (31, 5), (31,)))
    ids = torch.randint(31, (9, 4), generator=g)
    ids[3] = 7  # an entry asked for several times
    return *(t.to(dtype).requires_grad_() for t in (hidden, weight, bias)), ids


@pytest.mark.parametrize("block_bytes", [1, 400, 1 << 20])
def test_equals_the_full_product(block_bytes, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
    hidden, weight, bias, ids = problem()
    got = gather_logits(hidden, weight, ids, bias)
    want = (hidden @ weight.T + bias).gather(1, ids)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(got.shape, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad(v, (hidden, weight, bias), upstream) for v in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    frozen = gather_logits(hidden, weight.detach(), ids)
    assert torch.autograd.grad(frozen.sum(), hidden)[0].shape == hidden.shape


def test_sums_below_float32_are_made_in_float32():
    hidden, weight, _, ids = problem(torch.bfloat16)
    got = gather_logits(hidden, weight, ids)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), (hidden.double() @ weight.double().T).gather(1, ids), rtol=1e-5, atol=1e-5)
    assert {g.dtype for g in torch.autograd.grad(got.sum(), (hidden, weight))} == {torch.bfloat16}


def test_what_does_not_fit_is_named():
    hidden, weight, _, ids = problem()
    with pytest.raises(ValueError, match=r"ids_TK: 31 is outside the vocabulary of 31"):
        gather_logits(hidden, weight, torch.full_like(ids, 31))
    with pytest.raises(ValueError, match=r"ids_TK: \(4, 9\), torch.int64; expected \(9, K\)"):
        gather_logits(hidden, weight, ids.T)
    with pytest.raises(ValueError, match=r"expected \(T, H\) and \(V, H\)"):
        gather_logits(hidden[:, :3], weight, ids)
