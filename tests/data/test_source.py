"""Order and permutation: bijective, seeded, resumable from one integer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.data import TaskOrder
from grpo.data.source import check_fraction, check_int, is_heldout, permuted, stable_hash
from grpo.errors import DataError
from grpo.types import Task


@dataclass(frozen=True)
class Numbers:
    """Tasks that are their own index; `count` None is endless."""

    count: int | None

    def size(self, split: str) -> int | None:
        return self.count

    def task(self, split: str, index: int) -> Task:
        return Task(uid=str(index), prompt=str(index))


@given(st.integers(1, 300), st.integers())
def test_permuted_is_a_bijection(size, key):
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_permuted_depends_on_its_key_and_moves_things():
    orders = [[permuted(i, 100, key) for i in range(100)] for key in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    # A random permutation of 100 has one fixed point on average.
    assert all(sum(i == v for i, v in enumerate(order)) < 10 for order in orders)
    with pytest.raises(IndexError):
        permuted(100, 100)


def test_stable_hash_is_pinned():
    # A change here would silently reshuffle every split and every run.
    assert stable_hash("a", 1) == 9331952569449725121
    assert stable_hash("a", "b") != stable_hash("ab")


def test_heldout_share():
    share = sum(is_heldout(str(i), 0.2) for i in range(10_000)) / 10_000
    assert share == pytest.approx(0.2, abs=0.02)
    assert not is_heldout("x", 0.0)
    assert is_heldout("x", 1.0)


def test_each_epoch_is_a_new_shuffle_of_every_task():
    order = TaskOrder(Numbers(7), "train", seed=3)
    drawn = order.take(21)
    epochs = [[task.uid for task, _ in drawn[i : i + 7]] for i in (0, 7, 14)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(map(str, range(7)))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [visit for _, visit in drawn] == [0] * 7 + [1] * 7 + [2] * 7
    assert TaskOrder(Numbers(7), "train", seed=4).take(21) != drawn


@pytest.mark.parametrize("count", [5, None])
@given(cut=st.integers(0, 23))
def test_resume_at_a_position_goes_on_exactly(count, cut):
    whole = TaskOrder(Numbers(count), "train", seed=1).take(24)
    first = TaskOrder(Numbers(count), "train", seed=1)
    head = first.take(cut)
    rest = TaskOrder(Numbers(count), "train", seed=1, position=first.position)
    assert head + rest.take(24 - cut) == whole


def test_resume_costs_nothing_and_endless_orders_never_repeat_an_index():
    far = TaskOrder(Numbers(10**12), "train", seed=1, position=10**15)
    assert [visit for _, visit in far.take(2)] == [1000, 1000]
    uids = [task.uid for task, _ in TaskOrder(Numbers(None), "train", seed=1).take(100)]
    assert len(set(uids)) == 100
    assert uids != [task.uid for task, _ in TaskOrder(Numbers(None), "train", seed=2).take(100)]


def test_empty_split_is_refused():
    with pytest.raises(DataError, match="holds no tasks"):
        TaskOrder(Numbers(0), "train", seed=0)


@pytest.mark.parametrize("value", [True, "3", 3.0, None, 0, 11])
def test_check_int(value):
    check_int("x", 3, 1, 10)
    with pytest.raises(DataError, match="x must be a whole number from 1 to 10"):
        check_int("x", value, 1, 10)


@pytest.mark.parametrize("value", [True, "0.5", None, -0.1, 1.1, float("nan")])
def test_check_fraction(value):
    check_fraction("x", 1)
    with pytest.raises(DataError, match="x must be from 0 to 1"):
        check_fraction("x", value)
    with pytest.raises(DataError, match="both excluded"):
        check_fraction("x", 1, inclusive=False)
