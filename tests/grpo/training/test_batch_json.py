"""A batch through a file: the same bits, or a sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.errors import DataError
from grpo.training.batch_json import from_json, to_json
from grpo.training.drawing import draw
from grpo.training.gathering import Batch
from grpo.types import Completion, Group, Rollout, Score, Segment, Version

from .pacing import Template, spec

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


def batch_of(asked, content):
    """A batch of step 4 whose groups have such rollouts."""
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
    return Batch(step=4, groups=tuple(groups), positions=positions, metrics={"x": 0.1})


@given(st.lists(rollouts, min_size=1, max_size=3))
def test_a_batch_survives_a_file_to_the_bit(content):
    asked = spec()
    batch = batch_of(asked, content)
    found = from_json(json.loads(json.dumps(to_json(batch))), asked)
    assert (found.step, found.positions, found.metrics) == (4, batch.positions, {"x": 0.1})
    assert len(found.groups) == len(content)
    for group, again in zip(batch.groups, found.groups, strict=True):
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
    empty = Segment(
        ids=np.zeros(0, np.int64),
        version=Version(step=0, hash="h0"),
        logprobs=np.zeros(0, np.float32),
    )
    unscored = Score(value=None, status="scored")
    saved = to_json(batch_of(spec(), [[([empty], unscored, "", "abort")]]))

    class Strict(Template):
        def render(self, task):
            return None

    with pytest.raises(DataError, match="no longer fits"):
        from_json(saved, spec(template=Strict()))
