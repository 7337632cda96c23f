"""DFT against the gradient that its paper derives: that of cross-entropy, times the probability of the target."""

import pytest

torch = pytest.importorskip("torch")

from agreement import against  # noqa: E402

from postmill.stages.shared.asked import Outputs  # noqa: E402
from postmill.stages.train.objectives.dft_options import Dft  # noqa: E402

from .rows import random_rows  # noqa: E402


def test_the_gradient_of_a_token_is_cross_entropys_times_its_probability():
    batch = random_rows(3).batch
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(len(batch.targets_T), 64, generator=generator, dtype=torch.float64, requires_grad=True)
    targets_T = batch.targets_T.clamp(min=0)
    picked = logits.log_softmax(-1).gather(1, targets_T[:, None])[:, 0]
    tokens = float(batch.mask_T.sum())
    loss = Dft().build().loss(Outputs(logp_T=torch.where(batch.mask_T, picked, 0)), batch, {"tokens": tokens}, {})
    p_TV = logits.detach().softmax(-1)
    p_T = torch.where(batch.mask_T, p_TV.gather(1, targets_T[:, None])[:, 0], 0)
    # as <https://arxiv.org/abs/2508.05629>; TRL 1.16 has the same line in SFTTrainer.compute_loss
    want = -(p_T * picked.detach() * batch.mask_T).sum() / tokens
    torch.testing.assert_close(loss.total.detach(), want, rtol=1e-10, atol=0)
    one_hot = torch.nn.functional.one_hot(targets_T, 64)
    exact = p_T[:, None] * (p_TV - one_hot) / tokens
    [gradient] = torch.autograd.grad(loss.total, logits)
    against("dft", "the paper's formula", (loss.total, gradient), (want, exact))
    torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-14)
    assert loss.metrics["nll"][1] == "tokens"
