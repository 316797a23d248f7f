"""Drawing prompts: what a position finds again, what fits, and which noise a request has."""

from __future__ import annotations

import pytest

from grpo.data.source import stable_hash
from grpo.errors import DataError
from grpo.training.drawing import draw
from grpo.training.gathering import BatchAssembler
from grpo.types import NoiseSplit

from .pacing import spec


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


def test_noise_is_keyed_by_plain_numbers_that_keep_what_is_sampled_apart():
    # vLLM's seed is a hash of what the key looks like
    assert [repr(split.key(7, 3, 1)) for split in NoiseSplit] == [
        "(7, 0, 3, 1)",
        "(7, 1, 3, 1)",
        "(7, 2, 3, 1)",
    ]
    asked = spec(prompts_per_step=1, seed=7)
    (request,) = BatchAssembler(asked, 1).more()
    task, visit = asked.tasks.at(0)
    assert request.key == (7, 0, stable_hash(task.uid), visit)
