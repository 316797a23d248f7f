"""A batch on its way: which groups are drawn, kept and canceled."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from grpo.errors import EngineError
from grpo.training.gathering import BatchAssembler
from grpo.types import Completion, Score, Segment, Version

from .pacing import spec


def complete(request, index, step=0):
    segment = Segment(
        ids=np.array([3, 4]),
        version=Version(step=step, hash="h"),
        logprobs=np.full(2, -1.0, dtype=np.float32),
    )
    return Completion(
        request=request.uid, index=index, segments=(segment,), text=str(index), finish="stop"
    )


def scored(values):
    future = Future()
    future.set_result([Score(value=v, status="scored") for v in values])
    return future


def play(assembler, mixed, order=lambda requests: requests):
    """Rounds until no more is asked for; `mixed(place)`: whether a group's rewards differ.

    Returns the requests of each round, and what was canceled.
    """
    rounds, canceled = [], []
    while requests := assembler.more():
        rounds.append(requests)
        for request in order(requests):
            if request.uid in canceled:
                continue
            place = int(request.uid.partition("/")[2])
            values = [1.0, 0.0] if mixed(place) else [1.0, 1.0]
            for index in (1, 0):
                assembler.add(complete(request, index), lambda *_, v=values: scored(v))
            canceled += assembler.stragglers()
    assert not assembler.owed
    return rounds, canceled


def places(batch):
    return [int(g.rollouts[0].completion.request.partition("/")[2]) for g in batch.groups]


def test_dynamic_sampling_goes_on_until_enough_groups_are_informative():
    assembler = BatchAssembler(spec(prompts_per_step=4, max_rounds=5), 1)
    rounds, canceled = play(assembler, mixed=lambda place: place % 2 == 1)
    # 2 of 4 are informative: 2 more need 4 at that rate, and then there are enough.
    assert [len(r) for r in rounds] == [4, 4]
    assert not canceled
    batch = assembler.batch()
    assert places(batch) == [1, 3, 5, 7]
    assert batch.metrics["dynamic/rounds"] == 2
    assert batch.metrics["dynamic/groups"] == 8
    assert batch.metrics["dynamic/informative"] == 4
    assert batch.metrics["dynamic/discarded"] == 4
    assert batch.metrics["dynamic/reward"] == 0.75  # of all eight, not of those kept


def test_a_round_asks_for_what_is_missing_at_the_rate_so_far():
    assembler = BatchAssembler(spec(prompts_per_step=9, max_rounds=3), 1)
    rounds, _ = play(assembler, mixed=lambda place: place % 3 > 0)
    # 6 of 9, 3 missing: ceil(3 * 9 / 6) = 5, places 9 to 13, of which 10, 11 and 13
    assert [len(r) for r in rounds] == [9, 5]
    assert places(assembler.batch()) == [1, 2, 4, 5, 7, 8, 10, 11, 13]


def test_dynamic_sampling_stops_at_its_rounds_and_fills_up():
    assembler = BatchAssembler(spec(prompts_per_step=3, max_rounds=3), 1)
    rounds, _ = play(assembler, mixed=lambda place: place == 7)
    assert [len(r) for r in rounds] == [3, 3, 3]
    batch = assembler.batch()
    assert places(batch) == [0, 1, 7]  # the informative one, and the first of the others
    assert batch.metrics["dynamic/informative"] == 1
    assert batch.metrics["dynamic/discarded"] == 6


def test_dynamic_sampling_waits_for_the_scores_of_a_round():
    assembler = BatchAssembler(spec(prompts_per_step=2, max_rounds=2), 1)
    late = [Future(), Future()]
    for request, future in zip(assembler.more(), late, strict=True):
        for index in range(2):
            assembler.add(complete(request, index), lambda *_, f=future: f)
    assert not assembler.owed
    assert assembler.more() == []
    late[0].set_result([Score(value=v, status="scored") for v in (0.0, 1.0)])
    assert assembler.more() == []
    late[1].set_result([Score(value=v, status="scored") for v in (None, 1.0)])
    assert len(assembler.more()) == 2  # a group with one score compares nothing


def test_without_over_sampling_nothing_is_canceled():
    # Which group is late may depend on the clock; a run repeats to the bit only without that.
    assembler = BatchAssembler(spec(prompts_per_step=2, max_rounds=3), 1)
    _, canceled = play(assembler, mixed=lambda place: place > 0)
    assert not canceled
    assert "rollout/canceled_groups" not in assembler.batch().metrics


def test_over_sampling_cancels_the_slowest_and_never_trains_on_them():
    assembler = BatchAssembler(spec(prompts_per_step=3, oversample=2.0), 1)
    (requests,), canceled = play(assembler, mixed=lambda _: True, order=lambda r: r[::-1])
    assert len(requests) == 6
    assert canceled == ["1/0", "1/1", "1/2"]
    batch = assembler.batch()
    assert places(batch) == [3, 4, 5]  # in the order of drawing, not of finishing
    assert batch.metrics["rollout/canceled_groups"] == 3
    assert batch.metrics["rollout/unused_groups"] == 0
    with pytest.raises(EngineError, match="not asked for"):
        assembler.add(complete(requests[0], 0), lambda *_: scored([1.0, 0.0]))


def test_groups_that_finish_at_once_are_counted_even_if_there_is_no_place_for_them():
    assembler = BatchAssembler(spec(prompts_per_step=2, oversample=2.0), 1)
    for request in assembler.more()[:0:-1]:  # three in one poll; the first drawn is missing
        for index in range(2):
            assembler.add(complete(request, index), lambda *_: scored([1.0, 0.0]))
    assert assembler.stragglers() == ["1/0"]
    batch = assembler.batch()
    assert places(batch) == [1, 2]
    assert batch.metrics["rollout/canceled_groups"] == 1
    assert batch.metrics["rollout/unused_groups"] == 1


def test_over_sampling_with_dynamic_sampling_cancels_once_enough_are_informative():
    assembler = BatchAssembler(spec(prompts_per_step=2, oversample=2.0, max_rounds=2), 1)
    _, canceled = play(assembler, mixed=lambda place: place > 0)
    assert canceled == ["1/3"]
    assert places(assembler.batch()) == [1, 2]


@pytest.mark.parametrize(("share", "count"), [(1.1, 11), (1.15, 12), (1.0, 10), (3.3, 33)])
def test_over_sampling_by_a_decimal_fraction(share, count):
    assert len(BatchAssembler(spec(prompts_per_step=10, oversample=share), 1).more()) == count


def test_groups_are_in_the_order_of_drawing_whatever_finishes_first():
    def run(order):
        assembler = BatchAssembler(spec(prompts_per_step=5), 1)
        play(assembler, mixed=lambda _: True, order=order)
        return assembler.batch()

    one, other = run(lambda r: r), run(lambda r: [r[3], r[0], r[4], r[2], r[1]])
    assert places(one) == places(other) == [0, 1, 2, 3, 4]
    assert one.positions == other.positions
    assert [g.prompt for g in one.groups] == [g.prompt for g in other.groups]
    assert all(
        [r.completion.index for r in g.rollouts] == [0, 1] for b in (one, other) for g in b.groups
    )
