"""A batch on its way: which groups are drawn, kept and canceled, and a batch through a file."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.errors import DataError, EngineError
from grpo.gathering import Batch, BatchAssembler, draw, from_json, to_json
from grpo.types import Completion, Group, Rollout, Score, Segment, Version

from .pacing import Template, spec


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


def play(gathering, mixed, order=lambda requests: requests):
    """Rounds until no more is asked for; `mixed(place)`: whether a group's rewards differ.

    Returns the requests of each round, and what was canceled.
    """
    rounds, canceled = [], []
    while requests := gathering.more():
        rounds.append(requests)
        for request in order(requests):
            if request.uid in canceled:
                continue
            place = int(request.uid.partition("/")[2])
            values = [1.0, 0.0] if mixed(place) else [1.0, 1.0]
            for index in (1, 0):
                gathering.add(complete(request, index), lambda *_, v=values: scored(v))
            canceled += gathering.stragglers()
    assert not gathering.under_way
    return rounds, canceled


def places(batch):
    return [int(g.rollouts[0].completion.request.partition("/")[2]) for g in batch.groups]


def test_dynamic_sampling_goes_on_until_enough_groups_are_informative():
    gathering = BatchAssembler(spec(prompts_per_step=4, max_rounds=5), 1)
    rounds, canceled = play(gathering, mixed=lambda place: place % 2 == 1)
    # 2 of 4 are informative: 2 more need 4 at that rate, and then there are enough.
    assert [len(r) for r in rounds] == [4, 4]
    assert not canceled
    batch = gathering.batch()
    assert places(batch) == [1, 3, 5, 7]
    assert batch.metrics["dynamic/rounds"] == 2
    assert batch.metrics["dynamic/groups"] == 8
    assert batch.metrics["dynamic/informative"] == 4
    assert batch.metrics["dynamic/discarded"] == 4
    assert batch.metrics["dynamic/reward"] == 0.75  # of all eight, not of those kept


def test_a_round_asks_for_what_is_missing_at_the_rate_so_far():
    gathering = BatchAssembler(spec(prompts_per_step=9, max_rounds=3), 1)
    rounds, _ = play(gathering, mixed=lambda place: place % 3 > 0)
    # 6 of 9, 3 missing: ceil(3 * 9 / 6) = 5, places 9 to 13, of which 10, 11 and 13
    assert [len(r) for r in rounds] == [9, 5]
    assert places(gathering.batch()) == [1, 2, 4, 5, 7, 8, 10, 11, 13]


def test_dynamic_sampling_stops_at_its_rounds_and_fills_up():
    gathering = BatchAssembler(spec(prompts_per_step=3, max_rounds=3), 1)
    rounds, _ = play(gathering, mixed=lambda place: place == 7)
    assert [len(r) for r in rounds] == [3, 3, 3]
    batch = gathering.batch()
    assert places(batch) == [0, 1, 7]  # the informative one, and the first of the others
    assert batch.metrics["dynamic/informative"] == 1
    assert batch.metrics["dynamic/discarded"] == 6


def test_dynamic_sampling_waits_for_the_scores_of_a_round():
    gathering = BatchAssembler(spec(prompts_per_step=2, max_rounds=2), 1)
    late = [Future(), Future()]
    for request, future in zip(gathering.more(), late, strict=True):
        for index in range(2):
            gathering.add(complete(request, index), lambda *_, f=future: f)
    assert not gathering.under_way
    assert gathering.more() == []
    late[0].set_result([Score(value=v, status="scored") for v in (0.0, 1.0)])
    assert gathering.more() == []
    late[1].set_result([Score(value=v, status="scored") for v in (None, 1.0)])
    assert len(gathering.more()) == 2  # a group with one score compares nothing


def test_without_over_sampling_nothing_is_canceled():
    # Which group is late may depend on the clock; a run repeats to the bit only without that.
    gathering = BatchAssembler(spec(prompts_per_step=2, max_rounds=3), 1)
    _, canceled = play(gathering, mixed=lambda place: place > 0)
    assert not canceled
    assert "rollout/canceled_groups" not in gathering.batch().metrics


def test_over_sampling_cancels_the_slowest_and_never_trains_on_them():
    gathering = BatchAssembler(spec(prompts_per_step=3, oversample=2.0), 1)
    (requests,), canceled = play(gathering, mixed=lambda _: True, order=lambda r: r[::-1])
    assert len(requests) == 6
    assert canceled == ["1/0", "1/1", "1/2"]
    batch = gathering.batch()
    assert places(batch) == [3, 4, 5]  # in the order of drawing, not of finishing
    assert batch.metrics["rollout/canceled_groups"] == 3
    assert batch.metrics["rollout/unused_groups"] == 0
    with pytest.raises(EngineError, match="not asked for"):
        gathering.add(complete(requests[0], 0), lambda *_: scored([1.0, 0.0]))


def test_groups_that_finish_at_once_are_counted_even_if_there_is_no_place_for_them():
    gathering = BatchAssembler(spec(prompts_per_step=2, oversample=2.0), 1)
    for request in gathering.more()[:0:-1]:  # three in one poll; the first drawn is missing
        for index in range(2):
            gathering.add(complete(request, index), lambda *_: scored([1.0, 0.0]))
    assert gathering.stragglers() == ["1/0"]
    batch = gathering.batch()
    assert places(batch) == [1, 2]
    assert batch.metrics["rollout/canceled_groups"] == 1
    assert batch.metrics["rollout/unused_groups"] == 1


def test_over_sampling_with_dynamic_sampling_cancels_once_enough_are_informative():
    gathering = BatchAssembler(spec(prompts_per_step=2, oversample=2.0, max_rounds=2), 1)
    _, canceled = play(gathering, mixed=lambda place: place > 0)
    assert canceled == ["1/3"]
    assert places(gathering.batch()) == [1, 2]


@pytest.mark.parametrize(("share", "count"), [(1.1, 11), (1.15, 12), (1.0, 10), (3.3, 33)])
def test_over_sampling_by_a_decimal_fraction(share, count):
    assert len(BatchAssembler(spec(prompts_per_step=10, oversample=share), 1).more()) == count


def test_groups_are_in_the_order_of_drawing_whatever_finishes_first():
    def run(order):
        gathering = BatchAssembler(spec(prompts_per_step=5), 1)
        play(gathering, mixed=lambda _: True, order=order)
        return gathering.batch()

    one, other = run(lambda r: r), run(lambda r: [r[3], r[0], r[4], r[2], r[1]])
    assert places(one) == places(other) == [0, 1, 2, 3, 4]
    assert one.positions == other.positions
    assert [g.prompt for g in one.groups] == [g.prompt for g in other.groups]
    assert all(
        [r.completion.index for r in g.rollouts] == [0, 1] for b in (one, other) for g in b.groups
    )


def test_positions_find_prompts_again_though_some_were_too_long():
    asked = spec(prompts_per_step=25)
    drawn, counts = draw(asked, 25)
    assert counts["prompts/dropped"] > 0
    assert asked.tasks.position == 25 + counts["prompts/dropped"]
    for one in drawn:
        task, visit = asked.tasks.at(one.position)
        assert (task, visit) == (one.prompt.task, one.visit)


def test_tasks_that_are_all_too_long_are_a_sentence():
    asked = spec()
    asked.template.render = lambda task: None
    with pytest.raises(DataError, match=r"data\.max_prompt_length"):
        draw(asked, 3)


floats = st.floats(width=32, allow_nan=False)
segments = st.builds(
    lambda pairs, source, step: Segment(
        ids=np.array([i for i, _ in pairs], dtype=np.int64),
        source=source,
        version=Version(step=step, hash=f"h{step}"),
        logprobs=np.array([p for _, p in pairs], dtype=np.float32),
    ),
    st.lists(st.tuples(st.integers(0, 2**31), floats), max_size=4),
    st.sampled_from(["model", "tool"]),
    st.integers(0, 9),
)
scores = st.builds(
    lambda value, detail, part: Score(
        value=value, status="scored", detail=detail, parts={"a": part, "b": None}
    ),
    st.none() | st.floats(allow_nan=False),
    st.text(max_size=5),
    st.floats(allow_nan=False),
)
finishes = st.sampled_from(["stop", "length", "abort"])
rollouts = st.lists(
    st.tuples(st.lists(segments, min_size=1, max_size=3), scores, st.text(max_size=8), finishes),
    min_size=1,
    max_size=3,
)


@given(st.lists(rollouts, min_size=1, max_size=3))
def test_a_batch_survives_a_file_to_the_bit(content):
    asked = spec()
    drawn, _ = draw(asked, len(content))
    groups = [
        Group(
            prompt=one.prompt,
            visit=one.visit,
            rollouts=tuple(
                Rollout(
                    prompt=one.prompt,
                    completion=Completion(
                        request=f"4/{place}",
                        index=index,
                        segments=tuple(parts),
                        text=text,
                        finish=finish,
                    ),
                    score=score,
                )
                for index, (parts, score, text, finish) in enumerate(group)
            ),
        )
        for place, (one, group) in enumerate(zip(drawn, content, strict=True))
    ]
    positions = tuple(one.position for one in drawn)
    batch = Batch(step=4, groups=tuple(groups), positions=positions, metrics={"x": 0.1})
    found = from_json(json.loads(json.dumps(to_json(batch))), asked)
    assert (found.step, found.positions, found.metrics) == (4, positions, {"x": 0.1})
    for group, again in zip(groups, found.groups, strict=True):
        assert (again.prompt, again.visit) == (group.prompt, group.visit)
        for one, other in zip(group.rollouts, again.rollouts, strict=True):
            assert other.score == one.score
            assert bare(other.completion) == bare(one.completion)


def bare(completion):
    """A completion as values that compare by their bits and types."""
    return replace(completion, segments=()), [
        (s.source, s.version, s.ids.dtype, s.ids.tobytes(), s.logprobs.dtype, s.logprobs.tobytes())
        for s in completion.segments
    ]


def test_a_saved_batch_whose_task_no_longer_fits_is_a_sentence():
    asked = spec(prompts_per_step=1)
    gathering = BatchAssembler(asked, 1)
    play(gathering, mixed=lambda _: True)
    saved = to_json(gathering.batch())

    class Strict(Template):
        def render(self, task):
            return None

    with pytest.raises(DataError, match="no longer fits"):
        from_json(saved, spec(template=Strict()))
