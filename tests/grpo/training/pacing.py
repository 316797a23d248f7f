"""An engine and a learner that take time, and what a batch needs around them."""

from __future__ import annotations

import threading
import time

import numpy as np
import torch

from grpo.data.source import TaskOrder
from grpo.errors import WeightsError
from grpo.rewards.compose import RewardSet
from grpo.rewards.verifier import VerifierReward
from grpo.training.drawing import RolloutSpec
from grpo.training.schedule import RolloutScheduler
from grpo.types import Ack, Completion, Prompt, Sampling, Score, Segment, Task, Version


class Source:
    def size(self, split):
        return 40

    def task(self, split, index):
        return Task(uid=str(index), prompt=str(index), answer="x")


class Template:
    """Every seventh task is too long."""

    def __init__(self):
        self.counts = {"rendered": 0, "dropped": 0, "truncated": 0}

    def render(self, task):
        if int(task.uid) % 7 == 3:
            self.counts["dropped"] += 1
            return None
        self.counts["rendered"] += 1
        return Prompt(task=task, text=task.uid, ids=(1, 3 + int(task.uid) % 16))


def spec(**overrides):
    settings = {
        "tasks": TaskOrder(Source(), "train", seed=0),
        "template": Template(),
        "sampling": Sampling(max_tokens=4),
        "prompts_per_step": 3,
        "num_generations": 2,
        "seed": 0,
    }
    return RolloutSpec(**{**settings, **overrides})


def version(step):
    return Version(step=step, hash=f"h{step}")


class Learner:
    """Counts steps; `pause(step)` says how long one takes."""

    def __init__(self, pause=lambda step: 0.0):
        self.steps, self.pause = 0, pause

    def step(self):
        self.steps += 1
        time.sleep(self.pause(self.steps))

    def version(self):
        return version(self.steps)

    def weights(self):
        return iter(())

    def canary(self):
        return 0.0


class SlowEngine:
    """Samples one request after another; `pause()` says how long each of its tokens takes.

    Honors timeouts and `in_flight` as the real engines do; versions are per token.
    """

    def __init__(self, pause=lambda: 0.0, tokens=1, start=None):
        self.pause, self.tokens, self.version = pause, tokens, start or version(0)
        self.queue, self.made, self.loaded, self.canceled = [], [], [], []
        self.threads, self.closed = set(), False

    def submit(self, requests):
        self.threads.add(threading.get_ident())
        self.queue += requests

    def poll(self, timeout=None):
        self.threads.add(threading.get_ident())
        end = None if timeout is None else time.monotonic() + timeout
        while self.queue:
            time.sleep(self.pause())
            self.made.append(self.version)
            if len(self.made) == self.tokens:
                return self._completions()
            if end is not None and time.monotonic() >= end:
                break
        return []

    def _completions(self):
        request, versions = self.queue.pop(0), self.made
        self.made = []
        runs = [[versions[0]]]
        for one in versions[1:]:
            runs = [*runs[:-1], [*runs[-1], one]] if one == runs[-1][0] else [*runs, [one]]
        segments = tuple(
            Segment(
                ids=np.full(len(run), 5),
                version=run[0],
                logprobs=np.full(len(run), -1.0, dtype=np.float32),
            )
            for run in runs
        )
        return [
            Completion(
                request=request.uid, index=i, segments=segments, text="xy"[i % 2], finish="stop"
            )
            for i in range(request.n)
        ]

    def cancel(self, uids):
        self.canceled += uids
        self.queue = [r for r in self.queue if r.uid not in uids]

    def load_weights(self, weights, version, in_flight="finish"):
        if in_flight == "finish" and self.made:
            raise WeightsError("loaded in the middle of a completion")
        self.version = version
        self.loaded.append(version)
        return Ack(version=version, tensors=0, canary=0.0)

    def take_metrics(self):
        return {}


def plain(*, completions, **columns):
    """A reward of a user's: nobody said that it may run in a thread."""
    return [float(c == "x") for c in completions]


class Sure(VerifierReward):
    """The same as a verifier, which may."""

    name = "sure"

    def verify(self, completion, task):
        return Score(value=float(completion == task.answer), status="scored")


def rewards(one=plain):
    return RewardSet([("mine", one, 1.0)])


def threads():
    """Threads that a schedule has started."""
    return [t for t in threading.enumerate() if t.name.startswith("grpo-r")]


def tensor_bytes(model):
    return b"".join(p.detach().to(torch.float32).numpy().tobytes() for p in model.parameters())


MODES = {
    "sync": {"staleness": 0},
    "one_step_off": {"staleness": 1},
    "async": {"staleness": 2, "in_flight": "continue"},
}


def rollouts(engine=None, learner=None, reward=plain, last=6, order=None, **mode):
    built = RolloutScheduler(
        order or spec(), engine or SlowEngine(), rewards(reward), last=last, **mode
    )
    built.deliver(learner or Learner(), 0)
    return built


def steps(built, learner, last=6):
    """Take, learn, deliver; the batches."""
    batches = []
    for step in range(1, last + 1):
        batches.append(built.take(step))
        learner.step()
        built.deliver(learner, step)
    return batches
