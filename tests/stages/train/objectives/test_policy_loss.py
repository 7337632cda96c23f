"""Every policy loss against TRL's own, called unbound on a stub, in float64: value and gradient."""

import itertools
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
trl = pytest.importorskip("trl")

from agreement import against  # noqa: E402
from trl_grpo import OneProcess, grpo_loss  # noqa: E402

from postmill.stages.shared.asked import Outputs  # noqa: E402
from postmill.stages.shared.batch import Batch  # noqa: E402
from postmill.stages.train.objectives.policy_loss import (  # noqa: E402
    Sampled,
    kl_to_reference,
    mismatch_metrics,
    mismatch_weights,
    token_losses,
)
from postmill.stages.train.objectives.rl import RlLoss, row_shares  # noqa: E402
from postmill.stages.train.objectives.rl_options import PRESETS, Rl  # noqa: E402
from postmill.stages.train.objectives.token_choice import draws  # noqa: E402

B, T = 6, 9
LENGTHS = [9, 3, 7, 1, 5, 8]
STARTS = np.cumsum([0] + [n + 1 for n in LENGTHS]).tolist()
NORMS = {"sampled": float(sum(LENGTHS)), "live": float(B), "live_groups": 1.0}


@pytest.fixture
def case():
    make = torch.Generator().manual_seed(7)

    def random(scale=1.0):
        return scale * torch.randn(B, T, dtype=torch.float64, generator=make)

    logp = -random().abs() - 0.1
    mask = torch.tensor([[float(t < n) for t in range(T)] for n in LENGTHS], dtype=torch.float64)
    return SimpleNamespace(
        logp=logp,
        old=logp + random(0.3),
        ref=logp + random(0.5),
        engine=logp + random(0.4),
        entropy=random().abs().float().double(),  # TRL finds its quantile in float32
        advantage=torch.tensor([1.5, -0.5, 0.7, -1.2, 0.0, -0.3], dtype=torch.float64),
        mask=mask,
    )


def laid_out(case):
    """The rows of `case` end to end as a batch, each behind one token of a prompt; and where its values go."""
    at = torch.cat([torch.arange(n) + start for n, start in zip(LENGTHS, STARTS, strict=False)])
    mask_T = torch.zeros(STARTS[-1], dtype=torch.bool).index_fill(0, at, True)
    columns = {name: torch.zeros(len(mask_T), dtype=torch.float64) for name in ("old_logp", "ref_logp", "engine_logp")}
    for name, column in columns.items():
        column[at] = getattr(case, name.removesuffix("_logp"))[case.mask.bool()]
    rows = torch.arange(B)
    batch = Batch(
        input_ids_1T=torch.zeros(1, len(mask_T), dtype=torch.int64),
        position_ids_1T=torch.zeros(1, len(mask_T), dtype=torch.int64),
        targets_T=torch.zeros(len(mask_T), dtype=torch.int64),
        mask_T=mask_T,
        weights_T=mask_T.float(),
        row_starts=tuple(STARTS),
        row_T=torch.repeat_interleave(rows, torch.tensor(LENGTHS) + 1),
        row_R=rows,
        group_R=rows,
        member_R=torch.zeros_like(rows),
        points_N=torch.tensor(STARTS[1:]) - 1,
        columns=columns | {"advantage": case.advantage, "group_tokens": torch.full((B,), float(sum(LENGTHS)))},
    )
    return batch, at


def ours(case, cfg, *, with_engine):
    """Loss and gradient of the objective itself."""
    logp = case.logp.clone().requires_grad_()
    batch, at = laid_out(case)
    if not with_engine:
        batch.columns["engine_logp"].fill_(float("nan"))
    spread = torch.zeros(len(batch.mask_T), dtype=torch.float64)
    outputs = Outputs(
        logp_T=spread.index_put((at,), logp[case.mask.bool()]),
        entropy_T=spread.index_put((at,), case.entropy[case.mask.bool()]),
    )
    loss = RlLoss(cfg)
    constants = {}
    if cfg.needs.coupling == "step_constants":
        constants = loss.constants(loss.summary(outputs, batch), NORMS)
    found = loss.loss(outputs, batch, NORMS, constants)
    found.total.backward()
    assert float(sum(found.parts.values()).detach()) == pytest.approx(float(found.total.detach()), abs=1e-12)
    return found.total.detach(), logp.grad


SHARES = {
    "grpo": "seq_mean_token_mean",
    "bnpo": "token_mean",
    "dapo": "token_mean",
    "dr_grpo": "seq_mean_token_sum_norm",
    "cispo": "token_mean",
    "sapo": "seq_mean_token_mean",
    "luspo": "seq_mean_token_sum",
    "vespo": "token_mean",
}
EXTRAS = [
    {},
    {"beta": 0.1},
    {"beta": 0.1, "unbiased": False},
    {"delta": 1.4},
    {"quantile": 0.5},
    {"off_policy": 0.1},
    {"mismatch": "token_truncate"},
    {"mismatch": "token_mask"},
    {"mismatch": "sequence_truncate"},
    {"mismatch": "sequence_mask", "beta": 0.1},
]


@pytest.mark.parametrize(("loss_type", "level"), list(itertools.product(SHARES, ["token", "sequence"])))
def test_value_and_gradient_are_those_of_trl(case, loss_type, level):
    for extra in EXTRAS:
        asked = {"beta": 0.0, "delta": None, "mismatch": None, "quantile": 1.0, "off_policy": None, "unbiased": True}
        asked |= extra
        cfg = Rl(
            surrogate=loss_type if loss_type in ("cispo", "sapo", "vespo") else "ppo",
            level=level,
            share=SHARES[loss_type],
            max_tokens=16,
            clip_low=0.2,
            clip_high=0.28,
            cispo_cap=5.0,
            delta=asked["delta"],
            kl_coef=asked["beta"],
            kl_unbiased=asked["unbiased"],
            entropy_quantile=asked["quantile"],
            mismatch=asked["mismatch"] or "none",
            off_policy_limit=asked["off_policy"],
        )
        # TRL counts a sequence's mismatch once in vespo's weight, as one value of the row: compared by token only
        if loss_type == "vespo" and (asked["mismatch"] or "").startswith("sequence"):
            continue
        value, gradient = grpo_loss(case, loss_type, level=level, **asked)
        with_engine = asked["mismatch"] is not None or asked["off_policy"] is not None
        mine, my_gradient = ours(case, cfg, with_engine=with_engine)
        against("rl", "TRL's GRPOTrainer, every loss type", (mine, my_gradient), (value, gradient))
        assert float(mine) == pytest.approx(float(value), abs=1e-10), extra
        assert float((my_gradient - gradient).abs().max()) < 1e-10, extra


def test_gmpo_is_that_of_trl(case):
    from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer

    logp = case.logp.clone().requires_grad_()
    stub = SimpleNamespace(
        accelerator=OneProcess(),
        top_entropy_quantile=1.0,
        beta=0.1,
        epsilon_low=0.4,
        epsilon_high=0.4,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, case.entropy, None),
    )
    inputs = {
        "prompt_ids": torch.zeros(B, 2),
        "prompt_mask": torch.ones(B, 2),
        "completion_ids": torch.zeros(B, T),
        "completion_mask": case.mask,
        "advantages": case.advantage,
        "old_per_token_logps": case.old,
        "ref_per_token_logps": case.ref,
    }
    loss = GMPOTrainer._compute_loss(stub, None, inputs)
    loss.backward()
    cfg = Rl(
        surrogate="gmpo",
        share="seq_mean_token_mean",
        clip_low=0.4,
        clip_high=0.4,
        kl_coef=0.1,
        kl_unbiased=False,
        mismatch="none",
    )
    mine, gradient = ours(case, cfg, with_engine=False)
    against("rl", "TRL's GMPOTrainer", (mine, gradient), (loss, logp.grad))
    assert float(mine) == pytest.approx(float(loss), abs=1e-12)
    assert float((gradient - logp.grad).abs().max()) < 1e-12


def verl_cov(case, name, share, low=-9.0, high=9.0):
    """verl 0.8's `compute_policy_loss_clip_cov` and `_kl_cov` in their own words; who is drawn comes from outside."""
    logp = case.logp.clone().requires_grad_()
    mask, advantage = case.mask.bool(), case.advantage[:, None].expand(B, T)
    ratio = (logp - case.old).exp()
    far = advantage - advantage[mask].mean()
    cov = far * (logp.detach() - logp.detach()[mask].mean())
    count = max(int(share * int(mask.sum())), 1)
    if name == "kl_cov":
        chosen = torch.zeros_like(cov, dtype=torch.bool)
        chosen[mask] = cov[mask] >= cov[mask].topk(count).values[-1]
        losses = torch.where(chosen, -advantage * ratio + (logp - case.old).abs(), -advantage * ratio)
    else:
        losses1, losses2 = -advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)
        chosen = mask & (cov > low) & (cov < high) & ~(losses2 > losses1)
        losses = torch.maximum(losses1, losses2) * (~chosen if share == 1 else 1.0)
    (losses * mask).sum().div(mask.sum()).backward()
    return (losses * mask).sum().div(mask.sum()).detach(), logp.grad, int(chosen.sum()), count


@pytest.mark.parametrize(("name", "share"), [("kl_cov", 0.3), ("kl_cov", 1e-4), ("clip_cov", 1.0)])
def test_losses_by_covariance_are_those_of_verl(case, name, share):
    cfg = Rl(surrogate=name, cov_share=share, cov_low=0.1, cov_high=0.6, clip_high=0.2, mismatch="none")
    value, gradient, num_chosen, _ = verl_cov(case, name, share, 0.1, 0.6)
    assert 0 < num_chosen < sum(LENGTHS)
    mine, mine_gradient = ours(case, cfg, with_engine=False)
    against("rl", "verl's losses by covariance", (mine, mine_gradient), (value, gradient))
    assert float(mine) == pytest.approx(float(value), abs=1e-12)
    assert float((mine_gradient - gradient).abs().max()) < 1e-12


def test_clip_cov_draws_as_many_tokens_as_its_share_from_the_band(case):
    case.advantage[4] = 0.2  # a token of no advantage has no gradient to lose
    _, every, num_band, count = verl_cov(case, "clip_cov", 0.1, 0.05, 5.0)
    assert 1 < count < num_band
    cfg = Rl(surrogate="clip_cov", cov_share=0.1, cov_low=0.05, clip_high=0.2, mismatch="none")
    _, gradient = ours(case, cfg, with_engine=False)
    is_dropped = (gradient == 0) & (every != 0)
    assert int(is_dropped.sum()) == count
    assert torch.equal(gradient[~is_dropped], every[~is_dropped])


def test_draws_are_even_and_no_two_tokens_share_theirs():
    found = draws(torch.arange(400).repeat_interleave(50), torch.arange(50).repeat(400))
    assert len(found.unique()) == 20_000
    assert found.histc(10, 0, 1).tolist() == pytest.approx([2000] * 10, rel=0.08)
    assert draws(torch.tensor([3]), torch.tensor([7])).item() == found[3 * 50 + 7].item()


def test_dro_pays_for_the_square_of_the_way(case):
    value, gradient = ours(case, Rl(surrogate="dro", dro_beta=0.4, mismatch="none"), with_engine=False)
    advantage, way = case.advantage[:, None], case.logp - case.old
    expected = ((-advantage * case.logp + 0.2 * way**2) * case.mask).sum() / case.mask.sum()
    assert float(value) == pytest.approx(float(expected), abs=1e-12)
    slope = (-advantage + 0.4 * way) * case.mask / case.mask.sum()
    assert float((gradient - slope).abs().max()) < 1e-12


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "clip_cov"])
def test_the_first_step_has_ratio_one(case, name):
    """On-policy, every surrogate has the gradient of REINFORCE: -share * advantage (times its own factor)."""
    case.old = case.logp.clone()
    _, gradient = ours(case, PRESETS[name], with_engine=False)
    lengths = torch.tensor(LENGTHS, dtype=torch.float64)
    share_R = row_shares(PRESETS[name], lengths, laid_out(case)[0], NORMS)
    expected = -share_R[:, None] * case.advantage[:, None] * case.mask
    assert float((gradient - expected).abs().max()) < 1e-12


def test_level_sequence_token_has_the_value_of_the_sequence_and_the_gradient_of_the_token(case):
    cfg = {"share": "token_mean", "clip_low": 9.0, "clip_high": 9.0, "mismatch": "none"}
    value, _ = ours(case, Rl(level="sequence", **cfg), with_engine=False)
    mine, gradient = ours(case, Rl(level="sequence_token", **cfg), with_engine=False)
    assert float(mine) == pytest.approx(float(value), abs=1e-12)
    mean = ((case.logp - case.old) * case.mask).sum(1) / case.mask.sum(1)
    expected = -(mean.exp() * case.advantage)[:, None] * case.mask / case.mask.sum()
    assert float((gradient - expected).abs().max()) < 1e-12


def test_dual_clip_bounds_the_loss_of_a_negative_advantage(case):
    case.old = case.logp - 3.0  # ratio e^3 everywhere
    case.advantage = -torch.ones(B, dtype=torch.float64)
    free, _ = ours(case, Rl(clip_low=0.2, mismatch="none"), with_engine=False)
    bounded, gradient = ours(case, Rl(clip_low=0.2, dual_clip=3.0, mismatch="none"), with_engine=False)
    assert float(free) == pytest.approx(np.exp(3.0))
    assert float(bounded) == pytest.approx(3.0)
    assert float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
def test_dppo_drops_tokens_that_went_too_far_the_wrong_way_only(case, name):
    case.mask = torch.zeros(B, T, dtype=torch.float64)
    case.mask[:, 0] = 1.0
    far, near = -0.1, -3.0
    case.logp = torch.full((B, T), near, dtype=torch.float64)
    case.old = torch.full((B, T), near, dtype=torch.float64)
    case.logp[0], case.old[0], case.advantage[0] = far, near, 1.0  # rose far, is to rise more: dropped
    case.logp[1], case.old[1], case.advantage[1] = far, near, -1.0  # rose far, is to fall: kept
    case.logp[2], case.old[2], case.advantage[2] = near, far, -1.0  # fell far, is to fall more: dropped
    row_T = torch.arange(B)
    at = case.mask.bool()
    sampled = Sampled(case.logp[at].requires_grad_(), case.old[at], case.advantage, row_T, B)
    loss_T = token_losses(Rl(surrogate=name, mismatch="none"), sampled)["policy"]
    assert [bool(value) for value in loss_T[:3] != 0] == [False, True, False]
    assert loss_T[3].item() == pytest.approx(1.2 * near)


def test_fipo_looks_at_the_future_of_the_same_row_only():
    logp = torch.tensor([-1.0, -1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0, -1.1, -1.0, -1.5], dtype=torch.float64)
    row = torch.tensor([0, 0, 1, 1])
    cfg = Rl(surrogate="fipo", clip_high=0.2, fipo_half_life=1.0, mismatch="none")
    loss_T = token_losses(cfg, Sampled(logp, old, torch.ones(4, dtype=torch.float64), row, 2))["policy"]
    influence = np.array([np.exp(0.05), np.exp(0.1), 1.2, 1.2])
    clipped = np.array([1.0, np.exp(0.1), 1.0, 1.2])
    assert loss_T.detach().numpy() == pytest.approx(-clipped * influence)


def test_published_numbers_of_the_mismatch_correction():
    row = torch.tensor([0, 0])
    sampled = Sampled(torch.zeros(2), torch.tensor([0.1, -0.3]), torch.ones(2), row, 1, engine_T=torch.zeros(2))
    assert mismatch_weights(Rl(mismatch="token_truncate", mismatch_high=2), sampled).tolist() == pytest.approx(
        [1.1052, 0.7408], abs=1e-4
    )
    by_row = [0.8187, 0.8187]  # exp of the sum, -0.2
    assert mismatch_weights(Rl(mismatch="sequence_truncate"), sampled).tolist() == pytest.approx(by_row, abs=1e-4)
    assert mismatch_weights(Rl(mismatch="geometric_mask"), sampled).tolist() == [1.0, 1.0]


def test_tokens_that_the_engine_did_not_score_have_ratio_one_and_are_counted():
    engine = torch.tensor([-1.0, float("nan"), -1.0])
    sampled = Sampled(
        -torch.ones(3), -torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.int64), 1, engine_T=engine
    )
    assert mismatch_weights(Rl(), sampled).tolist() == [1.0, 1.0, 1.0]
    assert {name: float(value) for name, value in mismatch_metrics(sampled).items()} == {
        "mismatch": 0.0,
        "mismatch_k3": 0.0,
        "unscored": 1.0,
    }


def test_divergences_are_finite_where_the_difference_is_not_small():
    logp, ref = torch.tensor([-1e4, -1.0]), torch.tensor([-1.0, -1e4])
    for kind in ("k1", "k2", "k3"):
        assert bool(kl_to_reference(kind, logp, ref).isfinite().all())
    assert float(kl_to_reference("k3", torch.tensor(-1.0), torch.tensor(-1.0))) == 0.0


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cispo needs cispo_cap"):
        Rl(surrogate="cispo")
    with pytest.raises(ValueError, match="needs max_tokens"):
        Rl(share="seq_mean_token_sum_norm")
    with pytest.raises(ValueError, match="gmpo is a value of a whole answer"):
        Rl(surrogate="gmpo")
    with pytest.raises(ValueError, match="old engine leaves no mismatch to correct"):
        Rl(old="engine")
    with pytest.raises(ValueError, match="kl_cov chooses tokens itself: it leaves no room for entropy_quantile"):
        Rl(surrogate="kl_cov", entropy_quantile=0.2)
