"""What overlap is worth: seconds a step between an engine and a learner that only sleep.

    python benchmarks/bench_overlap.py

The engine sleeps G seconds for a batch and the learner T seconds for a step, each on its own thread
and in its own time, so that nothing but the schedule decides what a step takes: G + T in turns,
max(G, T) at best. Steps after the first two are timed. Prints JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from grpo.data.source import TaskOrder
from grpo.rewards.compose import RewardSet
from grpo.rollout.fake import FakeEngine
from grpo.training.drawing import RolloutSpec
from grpo.training.schedule import RolloutScheduler
from grpo.types import Completion, Metrics, Prompt, Request, Row, Sampling, T, Task, Version

PAIRS = ((0.2, 0.15), (0.15, 0.2), (0.2, 0.2), (0.3, 0.05), (0.05, 0.3))
MODES: dict[str, dict[str, Any]] = {
    "sync": {"staleness": 0},
    "one_step_off": {"staleness": 1},
    "async": {"staleness": 2, "in_flight": "continue"},
}
STEPS, WARM_UP = 12, 2
PROMPTS = 4
BAR = 1.1  # of max(G, T), for one_step_off


class Tasks:
    """Numbers."""

    def size(self, split: str) -> int | None:
        """No end."""
        return None

    def task(self, split: str, index: int) -> Task:
        """A number as text."""
        return Task(uid=str(index), prompt=str(index), answer="a")


class Bytes:
    """A tokenizer: one token a character."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Code points."""
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Their text."""
        return "".join(map(chr, ids))


class Template:
    """A prompt is its task's text."""

    def __init__(self) -> None:
        self.counts = {"rendered": 0, "dropped": 0, "truncated": 0}

    def render(self, task: Task) -> Prompt:
        """Always fits."""
        return Prompt(task=task, text=task.uid, ids=tuple(Bytes().encode(task.uid)))


class SleepingEngine(FakeEngine):
    """Takes `seconds` for a batch, a prompt after another."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            lambda request, index: "ab"[index % 2],
            Bytes(),
            version=Version(step=0, hash="0"),
            batch=2,
        )
        self.seconds = seconds
        self.ends: list[float] = []  # when each prompt under way is done

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue; the work of a prompt begins when that of the one before it is done."""
        super().submit(requests)
        for _ in requests:
            before = max(time.monotonic(), self.ends[-1] if self.ends else 0.0)
            self.ends.append(before + self.seconds / PROMPTS)

    def poll(self, timeout: float | None = None) -> list[Completion]:
        """The next prompt's completions, or [] after `timeout` seconds."""
        if not self._queue:
            return []
        left = self.ends[-len(self._queue)] - time.monotonic()
        if timeout is not None and left > timeout:
            time.sleep(timeout)
            return []
        time.sleep(max(0.0, left))
        return super().poll(timeout)


class SleepingLearner:
    """A `Learner` that takes `seconds` for a step, of whatever rows."""

    rank, num_ranks = 0, 1

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps = seconds, 0

    def step(self, rows: Sequence[Row]) -> Metrics:
        """Sleep."""
        time.sleep(self.seconds)
        self.steps += 1
        return {}

    def gather(self, objects: Sequence[T]) -> list[T]:
        """Those of the only rank."""
        return list(objects)

    def version(self) -> Version:
        """One a step."""
        return Version(step=self.steps, hash=str(self.steps))

    def weights(self) -> Iterable[Any]:
        """None."""
        return ()

    def canary(self) -> float:
        """FakeEngine's."""
        return 0.0


def right(*, completions: Sequence[str], **columns: Any) -> list[float]:
    """1 for an "a"."""
    return [float(text == "a") for text in completions]


def seconds_per_step(generation: float, learning: float, mode: dict[str, Any]) -> dict[str, float]:
    """Seconds a step, and the shares of them in which each side had nothing to do."""
    engine, learner = SleepingEngine(generation), SleepingLearner(learning)
    template: Any = Template()
    spec = RolloutSpec(
        tasks=TaskOrder(Tasks(), "train", seed=0),
        template=template,
        sampling=Sampling(max_tokens=8),
        prompts_per_step=PROMPTS,
        num_generations=2,
        seed=0,
    )
    rewards = RewardSet([("right", right, 1.0)])
    rollouts: Any = RolloutScheduler(spec, engine, rewards, last=STEPS + 3, **mode)
    with closing(rollouts):
        rollouts.deliver(learner, 0)
        started = 0.0
        for step in range(1, STEPS + 1):
            rollouts.take(step)
            learner.step([])
            rollouts.deliver(learner, step)
            if step == WARM_UP:
                rollouts.take_metrics(1.0)
                started = time.perf_counter()
        total = time.perf_counter() - started
        idle = rollouts.take_metrics(total)
    return {"seconds_per_step": total / (STEPS - WARM_UP)} | idle


def measure() -> dict[str, Any]:
    """Every pair of G and T under every schedule; `passed`: one_step_off within its bar."""
    found: list[dict[str, Any]] = []
    for generation, learning in PAIRS:
        for name, mode in MODES.items():
            figures = seconds_per_step(generation, learning, mode)
            ratio = figures["seconds_per_step"] / max(generation, learning)
            found.append(
                {"mode": name, "generation": generation, "learning": learning}
                | {key: round(value, 4) for key, value in figures.items()}
                | {"of_the_longer": round(ratio, 3)}
            )
    worst = max(r["of_the_longer"] for r in found if r["mode"] == "one_step_off")
    return {
        "steps": STEPS - WARM_UP,
        "sleepers": found,
        "worst_of_one_step_off": worst,
        "bar": BAR,
        "passed": worst <= BAR,
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
