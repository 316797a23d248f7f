"""Groups are scored while the engine goes on sampling."""

from __future__ import annotations

import threading
from typing import ClassVar

import numpy as np

from grpo.data.source import TaskOrder
from grpo.rewards import RewardSet
from grpo.training.drawing import RolloutSpec
from grpo.training.schedule import RolloutScheduler
from grpo.types import Ack, Completion, Prompt, Sampling, Segment, Task, Version

VERSION = Version(step=0, hash="")


class Source:
    def size(self, split):
        return 2

    def task(self, split, index):
        return Task(uid=str(index), prompt="")


class Template:
    counts: ClassVar = {"dropped": 0, "truncated": 0}

    def render(self, task):
        return Prompt(task=task, text="", ids=(1,))


class Learner:
    def version(self):
        return VERSION

    def weights(self):
        return []

    def canary(self):
        return 0.0


class Engine:
    """Gives one group a poll; the second only once the first has been scored."""

    def __init__(self, scored):
        self.scored = scored
        self.waiting = []

    def submit(self, requests):
        self.waiting = list(requests)

    def load_weights(self, weights, version, in_flight):
        return Ack(version=version, tensors=0, canary=0.0)

    def take_metrics(self):
        return {}

    def poll(self, timeout=None):
        if len(self.waiting) == 1:
            assert self.scored.wait(5), "sampling waits for the reward"
        request = self.waiting.pop(0)
        segment = Segment(ids=np.array([1]), version=VERSION, logprobs=np.zeros(1, np.float32))
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

    spec = RolloutSpec(
        tasks=TaskOrder(Source(), "train", seed=0),
        template=Template(),
        sampling=Sampling(max_tokens=1),
        prompts_per_step=2,
        num_generations=2,
        seed=0,
    )
    rollouts = RolloutScheduler(spec, Engine(scored), RewardSet([("r", reward, 1.0)]), last=1)
    rollouts.deliver(Learner(), 0)
    groups = rollouts.take(1).groups
    assert [[r.score.value for r in g.rollouts] for g in groups] == [[0.0, 1.0], [0.0, 1.0]]
    assert steps == [1, 1]
