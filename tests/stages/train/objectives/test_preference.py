"""Preference losses against TRL's own code, called unbound on a stub, in float64."""

import itertools
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl", reason="the oracle")

import msgspec  # noqa: E402
from agreement import against  # noqa: E402
from torch.nn.functional import logsigmoid  # noqa: E402

from postmill.stages.train.objectives.cpo_options import Cpo  # noqa: E402
from postmill.stages.train.objectives.dpo_options import LOSSES, Dpo  # noqa: E402
from postmill.stages.train.objectives.interface import StepRows  # noqa: E402
from postmill.stages.train.objectives.orpo_options import Orpo  # noqa: E402
from postmill.stages.train.objectives.simpo_options import Simpo  # noqa: E402

from .rows import random_rows  # noqa: E402

LINKED = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm")
THEIR_F = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}


class OneProcess:
    """What TRL's losses ask of accelerate."""

    num_processes, sync_gradients, device = 1, True, "cpu"
    gather = gather_for_metrics = staticmethod(lambda x: x)
    unwrap_model = staticmethod(lambda m: m)


def trl_dpo(rows, options):
    """Loss and gradient of TRL 1.16's DPOTrainer._compute_loss."""
    from trl import DPOTrainer

    logp, reference = rows.padded(rows.outputs.logp_T), rows.padded(rows.batch.columns["ref_logp"])
    mask = rows.padded(rows.batch.mask_T.double()) != 0
    if options.ld_alpha is not None:
        length = mask.sum(1)
        shared = torch.minimum(*length.chunk(2)).repeat(2)
        tail = torch.arange(mask.shape[1]) >= shared[:, None]
        reference = torch.where(tail, options.ld_alpha * reference, reference)
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=OneProcess(),
        aux_loss_enabled=False,
        ld_alpha=options.ld_alpha,
        precompute_ref_logps=True,
        f_divergence_type=THEIR_F[options.f],
        f_alpha_divergence_coef=options.f_alpha,
        loss_types=list(options.terms),
        loss_weights=list(options.terms.values()),
        beta=options.beta,
        label_smoothing=options.label_smoothing,
        args=SimpleNamespace(discopop_tau=options.discopop_tau),
        use_weighting=options.weighting,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    answer = SimpleNamespace(
        log_probs=logp,
        log_sum_sq_probs=rows.padded(rows.outputs.collision_T),
        entropy=torch.zeros_like(logp),
        mean_logits=torch.zeros_like(logp),
        is_top1=torch.zeros_like(mask),
    )
    num_pairs = len(logp) // 2
    sums = reference.sum(1)
    inputs = {
        "input_ids": torch.zeros(len(logp), logp.shape[1] + 1, dtype=torch.int64),
        "attention_mask": torch.ones(len(logp), logp.shape[1] + 1),
        "completion_mask": torch.nn.functional.pad(mask.long(), (1, 0)),
        "ref_chosen_logps": sums[:num_pairs],
        "ref_rejected_logps": sums[num_pairs:],
    }
    torch.set_default_dtype(torch.float64)  # or TRL takes the logarithm of its smoothing in float32
    try:
        loss = DPOTrainer._compute_loss(stub, lambda **_: answer, inputs, False)
    finally:
        torch.set_default_dtype(torch.float32)
    return loss, torch.autograd.grad(loss, rows.leaf)[0]


def ours(rows, options):
    """Loss and gradient, by the way the objective's coupling asks for."""
    objective, batch = options.build(), rows.batch
    chosen = batch.member_R == 0
    tokens = float(rows.batch.mask_T[chosen[batch.row_T]].sum())
    norms = {"groups": float(chosen.sum()), "chosen_tokens": tokens}
    if objective.needs.coupling == "step_gradients":
        summary = objective.summary(rows.outputs, batch)
        loss = objective.step_loss(summary, StepRows(batch.row_R, batch.group_R, batch.member_R), norms)
    else:
        loss = objective.loss(rows.outputs, batch, norms, {})
    torch.testing.assert_close(sum(loss.parts.values()), loss.total.detach())
    assert {measure for _, measure in loss.metrics.values()} <= set(objective.needs.measures)
    return loss.total, torch.autograd.grad(loss.total, rows.leaf, retain_graph=True)[0]


def options_that_trl_has():
    """Every loss with every f-divergence it knows, with and without LD and WPO; and a weighted list."""
    for loss, f, ld, wpo in itertools.product(LOSSES, THEIR_F, (None, 0.4), (False, True)):
        if f != "reverse_kl" and loss not in LINKED:
            continue
        if wpo and loss in ("hinge", "sft"):  # TRL raises: it multiplies in place what autograd needs
            continue
        if f == "alpha":  # TRL raises KeyError in float64
            continue
        smoothing = 0.125 if loss in ("exo_pair", "robust", "aot", "aot_unpaired") else 0.0
        yield Dpo(loss=loss, f=f, f_alpha=0.5, ld_alpha=ld, weighting=wpo, label_smoothing=smoothing, beta=0.3)
    yield Dpo(loss="sigmoid:0.8,bco_pair:0.2,sft:1")


def test_dpo_equals_trl():
    cases = list(options_that_trl_has())
    assert len(cases) > 100
    for number, options in enumerate(cases):
        rows = random_rows(seed=number)
        mine, theirs = ours(rows, options), trl_dpo(rows, options)
        against("dpo", "TRL's DPOTrainer, every loss and f-divergence", mine, theirs)
        for got, want in zip(mine, theirs, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12, msg=lambda m, o=options: f"{o}: {m}")


def test_alpha_divergence_is_its_formula_and_ends_in_reverse_kl():
    rows = random_rows()
    near, exact = (ours(rows, Dpo(f="alpha", f_alpha=alpha))[0] for alpha in (1 + 1e-6, 1.0))
    torch.testing.assert_close(near, exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(exact, ours(rows, Dpo())[0])
    assert torch.isfinite(ours(random_rows(scale=500.0), Dpo(f="alpha", f_alpha=3.0))[0])


def test_what_trl_raises_for_or_leaves_out():
    rows = random_rows()
    plain = ours(rows, Dpo(loss="hinge"))[0]
    assert 0 < ours(rows, Dpo(loss="hinge", weighting=True))[0] < plain
    torch.testing.assert_close(ours(rows, Dpo(loss="sft", weighting=True))[0], ours(rows, Dpo(loss="sft"))[0])
    a, b = (rows.padded(rows.outputs.logp_T) - rows.padded(rows.batch.columns["ref_logp"])).sum(1).chunk(2)
    x = 0.1 * (a - b)
    smoothed = (-0.8 * logsigmoid(x) - 0.2 * logsigmoid(-x)).mean()
    torch.testing.assert_close(ours(rows, Dpo(label_smoothing=0.2))[0], smoothed)
    margin = torch.stack([rows.batch.columns["margin"][i] for i in rows._rows(0)]).double()
    torch.testing.assert_close(ours(rows, Dpo(margin=True))[0], -logsigmoid(x - margin).mean())


def test_the_first_step_of_dpo_has_the_loss_of_a_coin():
    rows = random_rows()
    rows = rows._replace(batch=rows.batch._replace(columns={"ref_logp": rows.outputs.logp_T.detach()}))
    assert float(ours(rows, Dpo())[0].detach()) == pytest.approx(np.log(2), rel=1e-15)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "simpo"])
def test_cpo_and_simpo_equal_trl(loss, alpha):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    rows = random_rows(seed=4)
    logp, mask = rows.padded(rows.outputs.logp_T), rows.padded(rows.batch.mask_T.double())
    sums = logp.sum(1) / (mask.sum(1) if loss in ("ipo", "simpo") else 1)
    stub = SimpleNamespace(
        alpha=alpha, beta=0.7, loss_type=loss, simpo_gamma=0.4, label_smoothing=0.1, accelerator=OneProcess()
    )
    pairs = CPOTrainer.cpo_loss(stub, *sums.chunk(2))[0]
    chosen = len(logp) // 2
    nll = -logp[:chosen].sum() / mask[:chosen].sum()
    want = pairs.mean() + 0.6 * nll
    if loss == "simpo":
        options = Simpo(beta=0.7, gamma=0.4, alpha=alpha, label_smoothing=0.1, nll=0.6)
    elif alpha:
        pytest.skip("AlphaPO is an option of simpo here")
    else:
        options = Cpo(loss=loss, beta=0.7, label_smoothing=0.1, nll=0.6)
    got, gradient = ours(rows, options)
    [wanted] = torch.autograd.grad(want, rows.leaf)
    against("simpo" if loss == "simpo" else "cpo", "TRL's CPOTrainer", (got, gradient), (want, wanted))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


def test_orpo_equals_trl_and_its_own_formula():
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    rows = random_rows(seed=5)
    logp, mask = rows.padded(rows.outputs.logp_T), rows.padded(rows.batch.mask_T.double())
    means, chosen = logp.sum(1) / mask.sum(1), len(logp) // 2
    nll = -logp[:chosen].sum() / mask[:chosen].sum()
    got, gradient = ours(rows, Orpo(beta=0.4))
    odds = means - torch.log(1 - means.exp())
    want = nll - 0.4 * logsigmoid(odds[:chosen] - odds[chosen:]).mean()
    [wanted] = torch.autograd.grad(want, rows.leaf, retain_graph=True)
    against("orpo", "the paper's formula", (got, gradient), (want, wanted))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12)
    theirs = ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.4, accelerator=OneProcess()), *means.chunk(2))[0]
    against("orpo", "TRL's ORPOTrainer, which computes in float32", (got,), (nll - theirs.mean(),))
    torch.testing.assert_close((nll - theirs.mean()).double(), got, rtol=1e-6, atol=0)  # TRL computes in float32


@pytest.mark.parametrize("options", [Dpo(), Dpo(loss="aot"), Cpo(), Simpo(), Orpo()], ids=lambda o: type(o).__name__)
def test_padding_adds_nothing(options):
    from postmill.stages.shared.batch import as_padding

    rows = random_rows()
    objective = options.build()
    outputs, batch = rows.outputs._replace(logp_T=rows.leaf * 0), as_padding(rows.batch)
    norms = {"groups": 3.0, "chosen_tokens": 7.0}
    if objective.needs.coupling == "step_gradients":
        loss = objective.step_loss(
            objective.summary(outputs, batch), StepRows(batch.row_R, batch.group_R, batch.member_R), norms
        )
    else:
        loss = objective.loss(outputs, batch, norms, {})
    assert float(loss.total.detach()) == 0
    assert all(float(value) == 0 for value, _ in loss.metrics.values())
    assert not torch.autograd.grad(loss.total, rows.leaf)[0].any()


def test_options_are_checked():
    with pytest.raises(msgspec.ValidationError, match="loss dop: no such loss; there are sigmoid"):
        msgspec.convert({"loss": "sigmoid:0.5,dop"}, Dpo)
    with pytest.raises(msgspec.ValidationError, match="exo_pair needs label_smoothing above 0"):
        msgspec.convert({"loss": "exo_pair"}, Dpo)
    with pytest.raises(msgspec.ValidationError, match="x is not a number"):
        msgspec.convert({"loss": "sigmoid:x"}, Dpo)
