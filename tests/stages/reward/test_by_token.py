"""Advantages by token: GAE, whitening and divergence are those of TRL's PPO; a teacher's log-ratio is added up."""

import json
import math

import numpy as np
import pytest

from postmill.stages.reward import by_token
from postmill.stages.reward.by_token import TokenSample, add_teacher, by_row, credit_gae, divergences
from postmill.stages.reward.by_token_options import ByToken

LENGTHS = (5, 1, 3, 4)


def samples(seed=0, **names):
    draw = np.random.default_rng(seed)
    found = []
    for number, length in enumerate(LENGTHS):
        signals = {name: draw.normal(-1, 0.7, length) for name in ("sampler", "ref", "value", "teacher")}
        found.append(TokenSample((number,), (length,), {k: v for k, v in signals.items() if k in names}, []))
    return found


def trl_ppo(found, reward, *, gamma, lam, kl_coef, kind):
    """TRL's PPOTrainer (experimental, until 1.12), written out a token at a time in float64: advantages before and
    after whitening, and returns. Its reward stands at the last token."""
    advantages, returns = [], []
    for sample, score in zip(found, reward, strict=True):
        logr = sample.signals["ref"] - sample.signals["sampler"]
        kl = -logr if kind == "k1" else (np.exp(logr) - 1) - logr
        rewards, values = -kl_coef * kl, sample.signals["value"]
        rewards[-1] += score
        last, reversed_ = 0.0, []
        for t in reversed(range(len(values))):
            following = values[t + 1] if t < len(values) - 1 else 0.0
            last = rewards[t] + gamma * following - values[t] + gamma * lam * last
            reversed_.append(last)
        advantages.append(np.array(reversed_[::-1]))
        returns.append(advantages[-1] + values)
    flat = np.concatenate(advantages)
    mean = flat.sum() / len(flat)
    variance = ((flat - mean) ** 2).sum() / len(flat) * len(flat) / (len(flat) - 1)
    return advantages, [(a - mean) / math.sqrt(variance + 1e-8) for a in advantages], returns


@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_gae_is_that_of_ppo(kind, gamma, lam):
    found, reward = samples(sampler=1, ref=1, value=1), np.array([1.0, 0.0, -0.5, 0.25])
    plain, white, returns = trl_ppo(found, reward, gamma=gamma, lam=lam, kl_coef=0.05, kind=kind)
    alive = np.ones(4, bool)
    for whiten, expected in ((False, plain), (True, white)):
        cfg = ByToken(gamma=gamma, lam=lam, kl_coef=0.05, kl=kind, whiten=whiten)
        credits = credit_gae(cfg, found, reward, 0.0, alive)
        for credit, advantage, target, sample in zip(credits, expected, returns, found, strict=True):
            np.testing.assert_allclose(credit.advantages, advantage, atol=1e-12)
            np.testing.assert_allclose(credit.returns, target, atol=1e-12)
            np.testing.assert_array_equal(credit.values, sample.signals["value"])


def test_samples_that_are_left_out_do_not_whiten():
    found, reward = samples(sampler=1, value=1), np.array([1.0, 99.0, -0.5, 0.25])
    alive = np.array([True, False, True, True])
    credits = credit_gae(ByToken(), found, reward, 0.0, alive)
    kept = np.concatenate([credit.advantages for credit, lives in zip(credits, alive, strict=True) if lives])
    assert kept.mean() == pytest.approx(0, abs=1e-12)
    assert kept.std(ddof=1) == pytest.approx(1, rel=1e-6)


def test_rewards_of_an_environment_count_where_they_were_given():
    """Without a critic, and lambda 1, a token's advantage is all that is earned from it on."""
    sample = TokenSample((0, 1), (2, 2), {"sampler": np.zeros(4)}, [(1, 0.5), (3, 2.0)])
    cfg = ByToken(lam=1.0, whiten=False)
    [credit] = credit_gae(cfg, [sample], np.array([0.5 + 2.0 + 1.0]), 1.0, np.ones(1, bool))
    np.testing.assert_allclose(credit.advantages, [3.5, 3.5, 3.0, 3.0])
    [end] = credit_gae(cfg, [sample], np.array([3.5]), 0.0, np.ones(1, bool))
    np.testing.assert_allclose(end.advantages, [3.5] * 4)
    rows = by_row([sample], [credit])
    assert [rows[row].advantages.tolist() for row in (0, 1)] == [[3.5, 3.5], [3.0, 3.0]]


def test_a_teacher_adds_its_log_ratio():
    found = samples(sampler=1, teacher=1)
    credits = add_teacher(ByToken(teacher_coef=0.5), found, np.array([2.0, np.nan, 0.0, 0.0]), [by_token.Credit()] * 4)
    for sample, credit, base in zip(found, credits, (2.0, 0.0, 0.0, 0.0), strict=True):
        expected = base + 0.5 * (sample.signals["teacher"] - sample.signals["sampler"])
        np.testing.assert_allclose(credit.advantages, expected)


def test_divergence_in_the_reward_of_other_estimators_is_a_sum():
    found = samples(sampler=1, ref=1)
    taken = divergences(ByToken(kl_coef=0.1), found)
    for sample, value in zip(found, taken, strict=True):
        assert value == pytest.approx(0.1 * (sample.signals["sampler"] - sample.signals["ref"]).sum())
    assert json.dumps(taken.tolist())
    assert (divergences(ByToken(kl_coef=0.1, kl="k3"), found) >= 0).all()
