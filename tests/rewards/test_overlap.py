"""Groups are scored while the engine goes on sampling."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np

from grpo.loop import sample_groups
from grpo.rewards import RewardSet
from grpo.types import Completion, Prompt, Sampling, Segment, Task, Version


class Engine:
    """Gives one group a poll; the second only once the first has been scored."""

    def __init__(self, scored):
        self.scored = scored
        self.waiting = []

    def submit(self, requests):
        self.waiting = list(requests)

    def poll(self, timeout=None):
        if len(self.waiting) == 1:
            assert self.scored.wait(5), "sampling waits for the reward"
        request = self.waiting.pop(0)
        segment = Segment(
            ids=np.array([1]), version=Version(step=0, hash=""), logprobs=np.zeros(1, np.float32)
        )
        return [
            Completion(request=request.uid, index=i, segments=(segment,), text="x", finish="stop")
            for i in range(request.n)
        ]


def test_a_group_is_scored_while_the_next_is_sampled():
    scored = threading.Event()
    steps = []

    def reward(completions, trainer_state, **_):
        steps.append(trainer_state.global_step)
        scored.set()
        return [float(i) for i in range(len(completions))]

    parts = SimpleNamespace(
        engine=Engine(scored),
        rewards=RewardSet([("r", reward, 1.0)]),
        sampling=Sampling(max_tokens=1),
        num_generations=2,
        seed=0,
    )
    drawn = [(Prompt(task=Task(uid=str(i), prompt=""), text="", ids=(1,)), 0) for i in range(2)]
    groups = sample_groups(parts, drawn, 7)
    assert [[r.score.value for r in g.rollouts] for g in groups] == [[0.0, 1.0], [0.0, 1.0]]
    assert steps == [7, 7]
