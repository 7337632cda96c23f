"""Advantages against hand-computed values and the formulas of the papers."""

import numpy as np
import pytest

from postmill.stages.reward.advantages import ESTIMATORS, Groups, group_kinds


def groups(reward, group, scores=None, weights=(1.0,), tokens=None):
    reward = np.array(reward, float)
    scores = reward[:, None] if scores is None else np.array(scores, float)
    tokens = np.ones(len(reward)) if tokens is None else np.array(tokens, float)
    return Groups(np.array(group), reward, scores, np.array(weights), tokens)


def test_published_numbers_of_grpo_and_rloo():
    one = groups([1, 0, 0, 0], [0, 0, 0, 0])
    assert ESTIMATORS["grpo"](one) == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=5e-5)
    assert ESTIMATORS["rloo"](one) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    assert ESTIMATORS["group_mean"](one) == pytest.approx([0.75, -0.25, -0.25, -0.25])
    assert ESTIMATORS["max_rl"](one) == pytest.approx([3, -1, -1, -1])


@pytest.mark.parametrize("name", ["grpo", "group_mean", "batch", "rloo", "reinforce_pp", "gdpo", "max_rl", "opo"])
def test_equal_rewards_have_no_advantage(name):
    assert ESTIMATORS[name](groups([0.95] * 4 + [0.1] * 3, [0] * 4 + [1] * 3)) == pytest.approx(np.zeros(7), abs=1e-9)


def test_groups_do_not_mix_but_through_the_batch_deviation():
    both = groups([1, 0, 5, 3], [0, 0, 1, 1])
    assert ESTIMATORS["group_mean"](both) == pytest.approx([0.5, -0.5, 1, -1])
    centred = np.array([0.5, -0.5, 1, -1])
    assert ESTIMATORS["reinforce_pp"](both) == pytest.approx(centred / (centred.std(ddof=1) + 1e-4))
    assert ESTIMATORS["batch"](both) == pytest.approx(centred / (np.std([1, 0, 5, 3], ddof=1) + 1e-4))


def test_gdpo_normalises_each_function_and_leaves_out_what_it_did_not_score():
    scores = [[1, 10], [0, np.nan], [0, 30]]
    found = ESTIMATORS["gdpo"](groups([0, 0, 0], [0, 0, 0], scores=scores, weights=(1.0, 0.5)))
    first = (np.array([1, 0, 0]) - 1 / 3) / (np.std([1, 0, 0], ddof=1) + 1e-8)
    second = (np.array([10, 30]) - 20) / (np.std([10, 30], ddof=1) + 1e-8)
    total = first + 0.5 * np.array([second[0], 0, second[1]])
    assert found == pytest.approx((total - total.mean()) / (total.std(ddof=1) + 1e-8))


def test_opo_weighs_the_baseline_by_length():
    assert ESTIMATORS["opo"](groups([1, 0], [0, 0], tokens=[3, 1])) == pytest.approx([0.25, -0.75])


def test_kinds_of_groups_are_told_by_the_rewards_themselves():
    reward = np.array([0.1] * 8 + [0] + [0.95] * 7 + [np.nan, 1.0] + [0.0, 0.0, np.nan])
    group = np.array([0] * 8 + [1] * 8 + [2] * 2 + [3] * 3)
    kinds = group_kinds(group, reward, 1e-12)
    assert kinds == ["best"] * 8 + ["mixed"] * 8 + ["few"] * 2 + ["worst"] * 3
