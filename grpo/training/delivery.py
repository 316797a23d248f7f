"""Which weights the engine got, and the proof that it computes with them.

An engine has to acknowledge the version that was sent, and to compute the learner's log-prob of the
canary. Each token of a completion names the weights that sampled it. Weights that were never
delivered, or are older than the schedule allows, stop the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grpo.errors import WeightsError
from grpo.types import Ack, Completion, Group, Learner, Metrics, Version

# Relative, of the canary's log-prob. In float32 two implementations differ by 1e-6. With bfloat16
# on both sides they differ by less than a third of this, and float16 is finer.
CANARY_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}


class Deliveries:
    """The versions that a learner handed to an engine, each with the steps it had learned.

    `staleness`: steps by which the weights of a completion may be behind. `precision`: the coarser
    type of engine and learner; it says how far apart their canaries may be.
    """

    def __init__(self, *, staleness: int, precision: str) -> None:
        self._staleness = staleness
        self._tolerance = CANARY_TOLERANCE[precision]
        self._steps: dict[Version, int] = {}  # of the last delivery of a version

    def send(self, learner: Learner, steps_done: int, load: Callable[[Version], Ack]) -> Version:
        """Have `load` bring the learner's weights to the engine; their version.

        Nothing is believed but the acknowledgment that `load` returns. Raises WeightsError.
        """
        version = learner.version()
        self._steps[version] = steps_done  # first: completions may carry it at once
        ack = load(version)
        expected = learner.canary()
        for one in ack.members or (ack,):
            check_ack(one, version, expected, self._tolerance)
        return version

    def check(self, completion: Completion, step: int) -> None:
        """Raise WeightsError unless weights delivered for `step` sampled the completion."""
        for segment in completion.segments:
            if segment.source != "model" or not len(segment.ids):
                continue
            sampled = f"a completion of {completion.request!r} was sampled with weights"
            if segment.version not in self._steps:
                raise WeightsError(
                    f"{sampled} {segment.version}, which this learner never delivered"
                )
            age = step - 1 - self._steps[segment.version]
            if age > self._staleness:
                raise WeightsError(
                    f"{sampled} {segment.version}, {age} steps old; the schedule allows "
                    f"{self._staleness}"
                )

    def ages(self, groups: Sequence[Group], step: int) -> Metrics:
        """Steps by which the sampling weights are behind the learner: mean and maximum by token."""
        count = total = most = 0
        for group in groups:
            for rollout in group.rollouts:
                for segment in rollout.completion.segments:
                    age = step - 1 - self._steps.get(segment.version, step - 1)
                    count += len(segment.ids)
                    total += len(segment.ids) * age
                    most = max(most, age if len(segment.ids) else 0)
        return {"staleness/mean": total / max(count, 1), "staleness/max": float(most)}

    def state(self) -> list[Any]:
        """Plain data for `restore`."""
        return [[version.step, version.hash, steps] for version, steps in self._steps.items()]

    def restore(self, state: Sequence[Any]) -> None:
        """Go on from what `state` gave."""
        self._steps = {Version(step=step, hash=digest): steps for step, digest, steps in state}


def check_ack(ack: Ack, sent: Version, expected: float, tolerance: float) -> None:
    """Raise WeightsError unless an acknowledgment is that of the weights sent."""
    if ack.version != sent:
        raise WeightsError(
            f"{ack.engine} acknowledged weights {ack.version}, but the learner sent {sent}; "
            "rollouts from these weights would train on wrong log-probs"
        )
    if not abs(ack.canary - expected) <= tolerance * max(1.0, abs(expected)):
        raise WeightsError(
            f"after loading weights {sent} the canary log-prob of {ack.engine} is "
            f"{ack.canary:.4f}, the learner's {expected:.4f}: it computes with other weights"
        )
