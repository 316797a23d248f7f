"""Advantages against numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from grpo.advantage import ADVANTAGES

NAN = np.nan


def advantages(name, rewards):
    return ADVANTAGES[name](np.array(rewards, dtype=np.float64))


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


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "batch"])
def test_groups_that_compare_nothing_are_exactly_zero(name):
    # the mean of three times 0.1 is not 0.1 in floating point
    rewards = [[0.1, 0.1, 0.1], [NAN, 7.0, NAN], [NAN, NAN, NAN], [1.0, 0.0, 0.0]]
    found = advantages(name, rewards)
    np.testing.assert_array_equal(found[:3], np.zeros((3, 3)))
    assert found[3].any()


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
@given(data=st.data())
def test_an_unscored_completion_is_as_good_as_never_drawn(name, data):
    rewards = data.draw(arrays(np.float64, (2, 5), elements=st.floats(-10, 10, width=16)))
    drop = data.draw(st.integers(0, 4))
    masked = rewards.copy()
    masked[:, drop] = NAN
    found = advantages(name, masked)
    assert not found[:, drop].any()
    others = np.delete(rewards, drop, axis=1)
    np.testing.assert_allclose(np.delete(found, drop, axis=1), advantages(name, others), atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-9)
