"""Advantages against numbers worked out by hand."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from grpo.errors import RecipeError, RewardError
from grpo.method.advantage import pass_at_k, reward_matrix
from grpo.method.table import ADVANTAGES, bound_advantage
from grpo.types import Completion, Group, Prompt, Rollout, Score, Task

NAN = np.nan


def advantages(name, rewards, **args):
    """Of a matrix of rewards; `gdpo` has it as the only reward, of weight 1."""
    matrix = np.array(rewards, dtype=np.float64)
    groups = [group(*(None if np.isnan(r) else r for r in row)) for row in rewards]
    return bound_advantage(name, args, reward_weights={"mine": 1.0})(matrix, groups)


def test_hand_computed():
    rewards = [[1.0, 0.0, 0.0, 1.0], [4.0, 1.0, 1.0, NAN]]
    # group 0: mean 1/2, sample variance 1/3; group 1: mean 2 of three scores, variance 3
    deviations = np.array([[0.5, -0.5, -0.5, 0.5], [2.0, -1.0, -1.0, 0.0]])
    stds = np.array([[3**-0.5], [3**0.5]])
    # all seven scores: mean 8/7, sum of squared deviations 20 - 64/7 = 76/7, divided by 6
    batch_std = (76 / 42) ** 0.5
    np.testing.assert_allclose(advantages("dr_grpo", rewards), deviations, rtol=1e-15)
    np.testing.assert_allclose(advantages("grpo", rewards), deviations / (stds + 1e-4), rtol=1e-14)
    np.testing.assert_allclose(
        advantages("batch", rewards), deviations / (batch_std + 1e-4), rtol=1e-14
    )
    np.testing.assert_allclose(
        advantages("rloo", rewards),
        [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [3.0, -1.5, -1.5, 0.0]],  # 1 - 1/3; 4 - 1, 1 - 5/2
        rtol=1e-14,
    )
    np.testing.assert_array_equal(advantages("none", rewards), [[1, 0, 0, 1], [4, 1, 1, 0]])


@pytest.mark.parametrize("name", [n for n in ADVANTAGES if n != "none"])
def test_groups_that_compare_nothing_are_exactly_zero(name):
    # the mean of three times 0.1 is not 0.1 in floating point
    rewards = [[0.1] * 9, [NAN] * 8 + [7.0], [NAN] * 9, [1.0] + [0.0] * 8]
    found = advantages(name, rewards)
    np.testing.assert_array_equal(found[:3], np.zeros((3, 9)))
    assert found[3].any()


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "pass@k"])
@given(data=st.data())
def test_an_unscored_completion_is_as_good_as_never_drawn(name, data):
    rewards = data.draw(arrays(np.float64, (2, 5), elements=st.floats(-10, 10, width=16)))
    drop = data.draw(st.integers(0, 4))
    masked = rewards.copy()
    masked[:, drop] = NAN
    args = {"k": 2} if name == "pass@k" else {}
    found = advantages(name, masked, **args)
    assert not found[:, drop].any()
    others = advantages(name, np.delete(rewards, drop, axis=1), **args)
    np.testing.assert_allclose(np.delete(found, drop, axis=1), others, atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-9)


def test_reinforce_plus_plus_by_hand():
    # deviations 1/2, -1/2, 0, 0, and 2, -1, -1: their squares add up to 6.5 over 7 scores
    rewards = [[1.0, 0.0, NAN, NAN], [3.0, 3.0, NAN, NAN], [4.0, 1.0, 1.0, NAN]]
    expected = np.array([[0.5, -0.5, 0, 0], [0, 0, 0, 0], [2, -1, -1, 0]]) / (
        (6.5 / 6) ** 0.5 + 1e-4
    )
    np.testing.assert_allclose(
        advantages("reinforce_plus_plus_baseline", rewards), expected, rtol=1e-14
    )


def test_maxrl_by_hand():
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.5, 0.0, NAN, 1.0]]
    expected = [[3, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0, -1, 0, 1]]
    np.testing.assert_allclose(advantages("maxrl", rewards), expected, rtol=1e-14, atol=1e-15)
    with pytest.raises(RecipeError, match=r"maxrl.*-0\.5"):
        advantages("maxrl", [[1.0, -0.5]])


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_expected_gradient_of_maxrl_is_that_of_log_p_cut_short(n, p):
    # a completion is right with chance p; the score of a right one is 1/p, of a wrong 1/(p - 1)
    expected = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=n):
        wins = np.array(outcome)
        score = np.where(wins == 1, 1 / p, 1 / (p - 1))
        chance = p ** wins.sum() * (1 - p) ** (n - wins.sum())
        expected += chance * float((advantages("maxrl", [outcome])[0] * score).mean())
    exact = sum((1 - p) ** (k - 1) for k in range(1, n))  # of -sum (1 - p)^k / k, towards 1/p
    assert expected == pytest.approx(exact, rel=1e-12)


def scored(parts):
    """A group whose completions have a score of these parts; unscored where one of them is NaN."""
    whole = group(*(None if NAN in part.values() else 0.0 for part in parts))
    rollouts = [
        replace(rollout, score=replace(rollout.score, parts=part))
        for rollout, part in zip(whole.rollouts, parts, strict=True)
    ]
    return replace(whole, rollouts=tuple(rollouts))


def test_gdpo_normalizes_each_reward_within_its_group():
    right, form = [1, 0, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1]
    parts = [{"accuracy": a, "format": f} for a, f in zip(right, form, strict=True)]
    groups = [scored(parts[:4]), scored(parts[4:])]
    gdpo = bound_advantage("gdpo", reward_weights={"accuracy": 2.0, "format": 1.0})
    found = gdpo(reward_matrix(groups), groups)
    unit = 0.5 / (math.sqrt(1 / 3) + 1e-4)  # of the values 1, 1, 0, 0
    totals = np.array([[3 * unit, -unit, unit, -3 * unit], [0.0, 0.0, 0.0, 0.0]])
    batch_std = 2 * unit  # of six totals around 0, whose squares add up to 20 units
    np.testing.assert_allclose(found, totals / (batch_std + 1e-4), rtol=1e-13)
    assert not found[1].any()


def test_gdpo_leaves_out_what_does_not_apply():
    """A reward that is None adds nothing to its completion; an unscored one is in no mean."""
    groups = [
        scored([{"a": 1.0, "b": 3.0}, {"a": 0.0, "b": None}, {"a": 0.0, "b": 1.0}, {"a": NAN}])
    ]
    found = bound_advantage("gdpo", reward_weights={"a": 1.0, "b": 1.0})(
        reward_matrix(groups), groups
    )
    a = np.array([2 / 3, -1 / 3, -1 / 3]) / (math.sqrt(1 / 3) + 1e-4)
    b = np.array([1.0, 0.0, -1.0]) / (math.sqrt(2) + 1e-4)
    totals = a + b
    expected = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(found, [[*expected, 0.0]], rtol=1e-12)


def best_of_every_subset(rewards, k):
    """The definition, subset by subset."""
    subsets = list(itertools.combinations(range(len(rewards)), k))
    best = np.array([max(rewards[i] for i in subset) for subset in subsets])
    gains = [
        np.mean([b - best.mean() for b, subset in zip(best, subsets, strict=True) if i in subset])
        for i in range(len(rewards))
    ]
    return np.array(gains) / (best.std() + 1e-4) if best.std() > 1e-12 else np.zeros(len(rewards))


@given(
    rewards=st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0]), min_size=1, max_size=8),
    k=st.integers(1, 8),
)
def test_pass_at_k_is_the_mean_over_all_subsets(rewards, k):
    (found,) = pass_at_k(np.array([[*rewards, NAN]]), k)
    expected = best_of_every_subset(rewards, k) if k < len(rewards) else np.zeros(len(rewards))
    np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("right", [1, 2, 3, 6, 7])
def test_pass_at_k_is_the_papers_closed_form(right):
    n, k, wrong = 8, 4, 8 - right
    mean = 1 - math.comb(wrong, k) / math.comb(n, k)
    std = (mean * (1 - mean)) ** 0.5
    good = (1 - mean) / (std + 1e-4)
    bad = (1 - mean - math.comb(wrong - 1, k - 1) / math.comb(n - 1, k - 1)) / (std + 1e-4)
    (found,) = advantages("pass@k", [[0.0] * wrong + [1.0] * right], k=4)
    np.testing.assert_allclose(found, [bad] * wrong + [good] * right, rtol=1e-12, atol=1e-12)
    assert found.any() == (wrong >= k)  # with fewer wrong every four have a right one


def group(*values):
    prompt = Prompt(task=Task(uid="sum/1", prompt="q"), text="q", ids=(1,))
    empty = Completion(request="r", index=0, segments=(), text="", finish="stop")
    scores = [Score(value=v, status="scored", parts={"mine": v}) for v in values]
    rollouts = tuple(Rollout(prompt=prompt, completion=empty, score=s) for s in scores)
    return Group(prompt=prompt, visit=0, rollouts=rollouts)


@pytest.mark.parametrize("value", [1e308, -1e200, 2e18, math.inf, NAN])
def test_rewards_that_nothing_can_be_computed_with_are_refused(value):
    """The variance would be infinite and the advantages 0, or NaN: no row would be trained."""
    words = f"task 'sum/1' has the reward {value:g} (mine {value}); nothing is learned"
    with pytest.raises(RewardError, match=re.escape(words)):
        reward_matrix([group(0.0, value)])
    np.testing.assert_array_equal(reward_matrix([group(1e18, None)]), [[1e18, NAN]])


@pytest.mark.parametrize("name", sorted(set(ADVANTAGES) - {"pass@k"}))
def test_what_is_no_number_is_not_taken_for_unscored(name):
    """Only where there is no reward is the advantage 0; anything else is left for the loop."""
    with np.errstate(all="ignore"):
        found = advantages(name, [[math.inf, 0.0, 1.0, NAN]])
    assert not np.isfinite(found[0, 0])
    assert found[0, 3] == 0.0
