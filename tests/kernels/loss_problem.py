"""What the tests of the loss share: a batch with everything awkward in it, the loss written the long way, and the cases
that the Triton backend has to pass under Triton's interpreter and on a GPU.
"""

import itertools

import torch
from torch.nn import functional as F

from postmill.kernels.loss_scale_ce.api import loss_scale_ce

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


def eager_loss(hidden, weight, bias, targets, weights, normaliser, **options):
    """All logits at once, on torch's cross_entropy, in the dtype of the inputs."""
    z = F.linear(hidden, weight, bias) * options.get("logit_scale", 1.0)
    cap = options.get("softcap")
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    smoothing = options.get("label_smoothing", 0.0)
    nll = F.cross_entropy(z, targets, reduction="none", label_smoothing=smoothing, ignore_index=-100)
    penalty = options.get("z_loss", 0.0) * torch.logsumexp(z, -1).square() * (targets != -100)
    return ((nll + penalty) * weights).sum() / normaliser


def leaves(*tensors, dtype=None):
    """Detached copies that want gradients."""
    return [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]


def assert_gradients_close(got, want, tolerance):
    for g, w in zip(got, want, strict=True):
        assert torch.isfinite(g).all()
        error = (g.double() - w.double()).abs().max().item()
        assert error <= tolerance * max(w.abs().max().item(), 1e-3), (error, w.abs().max().item())


def relative(got, want):
    """The largest deviation over the largest entry."""
    assert got.shape == want.shape
    if not want.numel():
        return 0.0
    size = want.abs().max().item()
    gap = (got.double() - want.double()).abs().max().item()
    return gap / size if size else gap


def deviations(
    dtype, *, device="cpu", rows=False, frozen=False, size=(37, 19, 251), active=0.5, change=None, **options
):
    """Of Triton's loss and gradients from float64; `change` spoils a problem, `rows` goes through logp and entropy."""
    *tensors, targets, weights = problem(*size, dtype=dtype, active=active)
    if change:
        change(tensors, targets, weights)
    targets, weights, *tensors = (t.to(device) for t in (targets, weights, *tensors))
    exact, got = leaves(*tensors, dtype=torch.float64), leaves(*tensors)
    got[1].requires_grad_(not frozen)
    clean = torch.where(((weights != 0) & (targets >= 0))[:, None], exact[0], 0)
    want = eager_loss(clean, exact[1], exact[2], targets, weights, 1e4, **options)
    out = loss_scale_ce(
        got[0],
        got[1],
        targets,
        weights,
        normaliser=1e4,
        bias_V=got[2],
        backend="triton",
        return_logp=rows,
        return_entropy=rows,
        return_correct=True,
        **options,
    )
    value, want_value = out.loss, want
    if rows:
        z_options = {k: v for k, v in options.items() if k in ("logit_scale", "softcap")}
        active_T = (weights != 0) & (targets >= 0)
        z = clean @ exact[1].T + exact[2]
        z = z * z_options.get("logit_scale", 1.0)
        if z_options.get("softcap"):
            z = z_options["softcap"] * torch.tanh(z / z_options["softcap"])
        logp_TV = z.log_softmax(-1)
        logp = torch.where(active_T, logp_TV.gather(1, targets.clamp(min=0)[:, None]).squeeze(1), 0)
        p_TV = logp_TV.exp()
        entropy = torch.where(active_T, -(p_TV * logp_TV.masked_fill(p_TV == 0, 0)).sum(-1), 0)
        g = torch.Generator().manual_seed(1)
        upstream = torch.randn(2, len(targets), generator=g, dtype=torch.float64).to(device)
        value = (upstream[0] * out.logp_T + upstream[1] * out.entropy_T).sum()
        want_value = (upstream[0] * logp + upstream[1] * entropy).sum()
    names = ["hidden", "bias"] if frozen else ["hidden", "weight", "bias"]
    pick = [0, 2] if frozen else [0, 1, 2]
    got_grads = torch.autograd.grad(value, [got[i] for i in pick])
    want_grads = torch.autograd.grad(want_value, [exact[i] for i in pick])
    result = {"loss": relative(out.loss, want), "value": relative(value, want_value)}
    return result | {n: relative(g, w) for n, g, w in zip(names, got_grads, want_grads, strict=True)}


def poison_skipped(tensors, targets, weights):
    tensors[0][(weights == 0) | (targets < 0)] = torch.nan


def zero(tensors, targets, weights):
    weights.zero_()


def one_row(tensors, targets, weights):
    weights.zero_()
    weights[9], targets[9] = -2.0, 250


def bar(tensors, targets, weights):
    tensors[2][:150] = -torch.inf
    targets[targets >= 0] = targets[targets >= 0].clamp(min=150)


def extreme(tensors, targets, weights):
    tensors[0] *= 4000


def nan_and_out_of_range(device="cpu"):
    """What surfaces as NaN in the loss, and in the gradient of the row that is to blame."""
    found = {}
    for where in ("hidden", "head", "weights", "outside"):
        *tensors, targets, weights = problem(dtype=torch.float32)
        row = int(((weights != 0) & (targets >= 0)).nonzero()[0])
        if where == "hidden":
            tensors[0][row, 2] = torch.nan
        elif where == "head":
            tensors[1][11, 2] = torch.nan
        elif where == "weights":
            weights[row] = torch.nan
        else:
            targets[row] = len(tensors[1])
        targets, weights, *tensors = (t.to(device) for t in (targets, weights, *tensors))
        hidden, weight, _ = leaves(*tensors)
        loss = loss_scale_ce(hidden, weight, targets, weights, normaliser=1.0, backend="triton").loss
        loss.backward()
        found[where] = [bool(loss.isnan()), bool(hidden.grad[row].isnan().any())]
    return found


def inserted_rows(device="cpu"):
    """Whether rows of weight 0, full of NaN, between the others leave loss and gradients the same to the last bit."""
    hidden, weight, bias, targets, weights = problem(dtype=torch.float32)
    keep = torch.arange(len(targets)) * 2
    wide = torch.full((2 * len(targets), hidden.shape[1]), torch.nan)
    wide_targets, wide_weights = torch.randint(len(weight), (len(wide),)), torch.zeros(len(wide))
    wide[keep], wide_targets[keep], wide_weights[keep] = hidden, targets, weights
    results = []
    for rows in ((hidden, targets, weights), (wide, wide_targets, wide_weights)):
        own, *others = (t.to(device) for t in rows)
        got = leaves(own, weight.to(device), bias.to(device))
        out = loss_scale_ce(got[0], got[1], *others, normaliser=3.0, bias_V=got[2], backend="triton")
        results.append((out.loss, *torch.autograd.grad(out.loss, got)))
    (loss, *grads), (wide_loss, *wide_grads) = results
    pairs = [(loss, wide_loss), (grads[0], wide_grads[0][keep]), *zip(grads[1:], wide_grads[1:], strict=True)]
    return {"equal": all(torch.equal(a, b) for a, b in pairs), "clean": not wide_grads[0][1::2].any()}
