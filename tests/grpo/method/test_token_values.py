"""One number a completion or one a token: what is taken, and the sentence for what is not."""

import re

import numpy as np
import pytest
import torch

from grpo.errors import PluginError
from grpo.method.objective import Objective
from grpo.method.token_values import checked, checked_advantages, spread
from grpo.method.weighted_rows import drop_dead, make_rows
from tests.grpo.rows import group

LENGTHS = np.array([3, 2, 2, 4, 1])


def two_groups():
    """Task 0 with completions of 3 and 2 tokens; task 1 with 2, 4 (two of a tool) and 1."""
    tools = [(2, 2), (1, 3), (1, 1)]
    return [
        group(0, 2, [3, 2], [1.0, None]),
        group(1, 2, [2, 4, 1], [0.5, 1.0, 0.0], tools=tools),
    ]


def test_a_matrix_is_a_number_for_each_completion():
    matrix = np.array([[0.5, 0.0, 9.0], [1.0, -1.0, 2.0]])  # 9: beyond the smaller group
    found = checked(matrix, two_groups(), "mine")
    assert found == [[0.5, 0.0], [1.0, -1.0, 2.0]]
    assert checked(matrix.tolist(), two_groups(), "mine") == found
    expected = [0.5, 0.5, 0.5, 0, 0, 1, 1, -1, -1, -1, -1, 2]
    assert spread(found, two_groups(), LENGTHS).tolist() == expected
    assert spread(matrix, two_groups(), LENGTHS).tolist() == expected


def test_numbers_and_tokens_may_be_mixed():
    found = checked(
        [[np.array([1, 2, 3]), 0], [[0.5, 1.5], -1.0, np.float32(2)]], two_groups(), "mine"
    )
    expected = [1, 2, 3, 0, 0, 0.5, 1.5, -1, -1, -1, -1, 2]
    assert spread(found, two_groups(), LENGTHS).tolist() == expected
    # as many tokens everywhere: an array of three dimensions, and its lists
    equal = [group(0, 2, [2, 2], [1.0, 0.0])]
    whole = np.arange(4.0).reshape(1, 2, 2)
    for form in (whole, whole.tolist()):
        values = checked(form, equal, "mine")
        assert spread(values, equal, np.array([2, 2])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([[1.0, 0.0]], "returned shape (1, 2)"),
        ([[[1, 2], 0], [0, 0, 0]], "shape (2,) for completion 0 of task '0', which has 3 tokens"),
        ([[[1, 2, 3], 0], [0, 0]], "returned 2 values for task '1' with 3 completions"),
        ([[[1, 2, np.inf], 0], [0, 0, 0]], "1 values that are not finite in float32 for comp"),
        ([[[1, 2, 1e300], 0], [0, 0, 0]], "float32 for completion 0 of task '0'"),
        ([[[1, 2, "a"], 0], [0, 0, 0]], "list, which is no array of numbers for completion 0"),
        ([[[1, 2, 3], 0], None], "returned NoneType for task '1' with 3 completions"),
        ("ab", "returned str, which is no array of numbers"),
        ({}, "returned dict, which is no array of numbers"),
    ],
)
def test_what_is_no_such_number_is_told_with_its_task(found, says):
    with pytest.raises(PluginError, match=re.escape(says)):
        checked(found, two_groups(), "algorithm.advantage")


@pytest.mark.parametrize(
    "row",
    [
        {0: 0.5, 1: -0.5},  # its keys are numbers too
        {0.5, -0.5},
        {0: 0.5, 1: -0.5}.values(),
        b"ab",
        np.ma.masked_array([0.5, 9.0], mask=[False, True]),
        [np.ma.masked_array([0.5, 9.0], mask=[False, True]), 0.5],
        torch.tensor([0.5, -0.5], requires_grad=True),
        [torch.tensor([0.5, -0.5], requires_grad=True), 0.5],
    ],
)
def test_what_only_looks_like_a_list_of_numbers_is_refused(row):
    groups = [group(0, 2, [2, 2], [1.0, 0.0])]
    with pytest.raises(PluginError, match=r"mine returned .* task '0'"):
        checked([row], groups, "mine")
    for whole in (
        np.ma.masked_array([[0.5, 9.0]], mask=[[0, 1]]),
        torch.ones(1, 2).requires_grad_(),
    ):
        with pytest.raises(PluginError, match=r"mine returned .* no array of numbers"):
            checked(whole, groups, "mine")


def test_a_tensor_is_an_array():
    groups = [group(0, 2, [2, 2], [1.0, 0.0])]
    assert checked(torch.tensor([[0.5, -0.5]]), groups, "mine") == [[0.5, -0.5]]
    assert checked([torch.tensor([1, 2])], groups, "mine") == [[1.0, 2.0]]
    found = checked([[torch.tensor([0.5, -0.5]), 0]], groups, "mine")
    assert spread(found, groups, np.array([2, 2])).tolist() == [0.5, -0.5, 0, 0]


@pytest.mark.parametrize("value", [0.5, [0.0, 0.5]])
def test_an_unscored_completion_has_no_advantage_in_either_form(value):
    good = [[[1, 2, 3], [0, 0]], [0, 0, 0]]
    assert checked_advantages(good, two_groups())[0][1].tolist() == [0, 0]
    with pytest.raises(PluginError, match=r"returned 0\.5 for a completion .* task '0'"):
        checked_advantages([[[1, 2, 3], value], [0, 0, 0]], two_groups())


def test_rows_have_an_advantage_for_each_token_and_the_mask_drops_those_of_tools():
    groups = two_groups()
    advantages = checked_advantages([[[1, 2, 3], 0], [0, [5, 6, 7, 8], 0]], groups)
    rows = make_rows(groups, advantages, loss_type="dapo", max_completion_length=8)
    assert [row.columns["advantages"].tolist() for row in rows] == [
        [1, 2, 3],
        [0, 0],
        [0, 0],
        [5, 0, 0, 8],
        [0],
    ]
    live, metrics = drop_dead(rows, beta=0.0)
    assert [len(row.ids) for row in live] == [3, 4]  # dead: every advantage is 0
    assert metrics["rows/dead"] == 2
    # alive by the advantage of one token alone
    one = checked_advantages([[0, 0], [0, [0, 0, 0, 1], 0]], groups)
    rows = make_rows(groups, one, loss_type="dapo", max_completion_length=8)
    assert [len(row.ids) for row in drop_dead(rows, beta=0.0)[0]] == [4]


def own(columns):
    return Objective(token_loss="clipped_surrogate", columns=columns)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (lambda groups: {"weights": 0}, "returned 'weights', and a column needs a name of its own"),
        (lambda groups: {"logp_old": 0}, "returned 'logp_old'"),
        (lambda groups: [1], "columns returned list; it has to return a dict"),
        (lambda groups: {"mark": [[0, 0]]}, "column 'mark' of the objective returned shape (1, 2)"),
        (lambda groups: {"mark": [[0, 0], [0, [1, 2], 0]]}, "task '1', which has 4 tokens"),
    ],
)
def test_columns_that_are_refused(columns, says):
    groups = two_groups()
    with pytest.raises(PluginError, match=re.escape(says)):
        make_rows(groups, np.zeros((2, 3)), loss_type=own(columns), max_completion_length=8)


def test_columns_are_made_once_of_all_groups():
    seen = []

    def columns(groups):
        seen.append(groups)
        return {"mark": [[[1, 2, 3], 4], [5, [6, 7, 8, 9], 10]]}

    groups = two_groups()
    rows = make_rows(groups, np.zeros((2, 3)), loss_type=own(columns), max_completion_length=8)
    assert seen == [groups]
    # 0 where nothing is trained: the unscored completion, and the tokens of a tool
    assert [row.columns["mark"].tolist() for row in rows] == [
        [1, 2, 3],
        [0, 0],
        [5, 5],
        [6, 0, 0, 9],
        [10],
    ]
    assert {row.columns["mark"].dtype for row in rows} == {np.dtype(np.float32)}
