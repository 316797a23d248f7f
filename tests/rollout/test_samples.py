"""What becomes of a sample: its text and tokens up to a stop string, its segments, its place."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from grpo.rollout.samples import Job, Sample, finished, put_back
from grpo.types import Version

from .tiny_models import V0, Pairs, request

V1, V2 = Version(step=1, hash="one"), Version(step=2, hash="two")


def sample(ids: list[int], index: int = 0, **sampling: Any) -> Sample:
    job = Job(request=request("r", [1], n=4, max_tokens=9, **sampling), waiting=deque())
    logprobs = [-0.5 * n for n in range(len(ids))]
    return Sample(job=job, index=index, marks=[(0, V0)], ids=ids, logprobs=logprobs)


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        (("bBc",), "aAbBc", 3),  # within a token, and a token was decoded beyond it
        (("D", "Bc"), "aAbBc", 3),  # the first to end
        (("aA",), "aA", 1),
        (("z",), "aAbBcCdD", 4),
    ],
)
def test_a_stop_string_is_the_end_of_text_and_tokens(
    stop: tuple[str, ...], text: str, tokens: int
) -> None:
    done = finished(sample([1, 2, 3, 4], stop=stop), Pairs(), "stop", stopped=True)
    assert done.text == text
    assert done.ids.tolist() == [1, 2, 3, 4][:tokens]
    np.testing.assert_array_equal(done.logprobs, [0.0, -0.5, -1.0, -1.5][:tokens])


def test_weights_that_took_over_beyond_a_stop_string_have_written_nothing() -> None:
    each = sample([1, 2, 3, 4], stop=("bB",))
    for made, version in ((1, V1), (1, V2), (3, V0)):  # V1 wrote nothing either
        each.mark(made, version)
    segments = finished(each, Pairs(), "stop", stopped=True).segments
    assert [(s.version, s.ids.tolist()) for s in segments] == [(V0, [1]), (V2, [2])]


def test_samples_put_back_wait_in_front() -> None:
    first, second = sample([], 1), sample([], 2)
    other = Sample(job=first.job, index=3, marks=[(0, V0)])
    second.job.waiting.append(3)
    queue = deque([second.job])
    put_back(queue, [first, other, second])
    assert list(queue) == [first.job, second.job]
    assert (list(first.job.waiting), list(second.job.waiting)) == ([1, 3], [2, 3])
