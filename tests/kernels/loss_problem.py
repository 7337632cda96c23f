"""What the tests of the loss share: a batch with everything awkward in it, and the loss written the long way."""

import itertools

import torch
from torch.nn import functional as F

GRID = [
    {"logit_scale": scale, "softcap": cap, "label_smoothing": smoothing, "z_loss": z}
    for scale, cap, smoothing, z in itertools.product([1.0, 0.37], [None, 3.0], [0.0, 0.1], [0.0, 1e-2])
]
OPTIONS = {"softcap": 5.0, "label_smoothing": 0.1, "z_loss": 0.01}
TOLERANCE = {
    # Gradients are compared relative to their largest entry. A logit here is a sum of some 20 products of size 1, so
    # float32 leaves about 1e-6 in it and in p; bfloat16 and float16 gradients are rounded once, at the end.
    torch.float64: 1e-10,
    torch.float32: 5e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def problem(num_tokens=37, hidden_size=19, vocab_size=251, *, dtype=torch.float64, active=0.5, seed=0):
    """hidden, weight, bias, targets, weights; with ignored targets and zero, negative and fractional weights."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, hidden_size, generator=g, dtype=torch.float64).to(dtype)
    weight = (torch.randn(vocab_size, hidden_size, generator=g, dtype=torch.float64) / 2).to(dtype)
    bias = torch.randn(vocab_size, generator=g, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocab_size, (num_tokens,), generator=g)
    weights = torch.randn(num_tokens, generator=g)
    weights[torch.rand(num_tokens, generator=g) > active] = 0
    targets[torch.rand(num_tokens, generator=g) > 0.9] = -100
    return hidden, weight, bias, targets, weights


def eager_loss(hidden, weight, bias, targets, weights, denominator, **options):
    """All logits at once, on torch's cross_entropy, in the dtype of the inputs."""
    z = F.linear(hidden, weight, bias) * options.get("logit_scale", 1.0)
    cap = options.get("softcap")
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    smoothing = options.get("label_smoothing", 0.0)
    nll = F.cross_entropy(z, targets, reduction="none", label_smoothing=smoothing, ignore_index=-100)
    penalty = options.get("z_loss", 0.0) * torch.logsumexp(z, -1).square() * (targets != -100)
    return ((nll + penalty) * weights).sum() / denominator


def leaves(*tensors, dtype=None):
    """Detached copies that want gradients."""
    return [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]


def assert_gradients_close(got, want, tolerance):
    for g, w in zip(got, want, strict=True):
        assert torch.isfinite(g).all()
        error = (g.double() - w.double()).abs().max().item()
        assert error <= tolerance * max(w.abs().max().item(), 1e-3), (error, w.abs().max().item())
