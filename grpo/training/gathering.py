"""One batch on its way: completions sorted into groups, groups scored.

A batch is complete when it has `prompts_per_step` groups. Two settings ask for more prompts than
that. Over-sampling begins some more and cancels the slowest. Dynamic sampling (DAPO, 2503.14476)
wants groups whose rewards differ: it draws further rounds until there are enough such groups, or
after `max_rounds` fills the remaining places with groups that teach nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from grpo.data.mixture import task_sampling
from grpo.data.source import stable_hash
from grpo.errors import EngineError
from grpo.rollout.answers import check_answer
from grpo.training.curriculum import Outcome, group_pass_rate
from grpo.training.drawing import DrawnPrompt, RolloutSpec, draw
from grpo.types import Completion, Group, Metrics, NoiseSplit, Prompt, Request, Rollout, Score


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from; `positions` of its groups in the task order."""

    step: int
    groups: tuple[Group, ...]
    positions: tuple[int, ...]
    metrics: Metrics
    outcomes: tuple[Outcome, ...] = ()  # of all that was scored, where a curriculum learns from it


class BatchAssembler:
    """The batch of `step` while it is sampled and scored."""

    def __init__(self, spec: RolloutSpec, step: int) -> None:
        self.spec = spec
        self.step = step
        self.rounds = 0
        self._drawn: list[DrawnPrompt] = []
        self._asked: dict[int, Request] = {}  # place -> its request
        self._open: dict[int, dict[int, Completion]] = {}  # place -> its completions so far
        self._scored: dict[int, tuple[tuple[Completion, ...], Future[list[Score]]]] = {}
        self._metrics: Metrics = {}
        self._canceled = 0

    def more(self) -> list[Request]:
        """The requests of the first or the next round; [] when no further one is called for."""
        spec, start, count = self.spec, len(self._drawn), self._missing()
        if not count:
            return []
        self.rounds += 1
        drawn, counts = draw(spec, count, self.step)
        self._drawn += drawn
        if self.rounds == 1 and spec.curriculum is not None:
            self._metrics |= spec.curriculum.metrics()
        if spec.length_at is not None:
            self._metrics["rollout/max_completion_length"] = float(spec.max_tokens(self.step))
        for name, value in counts.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + value
        places = [p for p in range(start, len(self._drawn)) if spec.mine(p)]
        self._open |= {place: {} for place in places}
        self._asked |= {place: self._request(place) for place in places}
        return [self._asked[place] for place in places]

    def _missing(self) -> int:
        """How many prompts the first or the next round draws."""
        spec = self.spec
        if self.rounds == 0:
            # 10 * 1.1 is a little more than 11
            return math.ceil(spec.prompts_per_step * spec.oversample - 1e-9)
        scored = all(future.done() for future in self.scores)
        if self.rounds == spec.max_rounds or self._open or not scored:
            return 0
        found = len(self._informative())
        missing = max(0, spec.prompts_per_step - found)
        # as many as it takes if the next round turns out like those before
        return min(spec.prompts_per_step, -(-missing * len(self._scored) // max(found, 1)))

    def _request(self, place: int) -> Request:
        drawn, spec = self._drawn[place], self.spec
        task = stable_hash(drawn.prompt.task.uid)
        length = spec.max_tokens(self.step)
        return Request(
            uid=f"{self.step}/{place}",
            ids=drawn.prompt.ids,
            n=spec.num_generations,
            sampling=task_sampling(drawn.prompt.task, spec.sampling, length),
            key=NoiseSplit.TRAIN.key(spec.seed, task, drawn.visit),
        )

    def add(
        self,
        completion: Completion,
        score: Callable[[Prompt, Sequence[Completion], int], Future[list[Score]]],
    ) -> None:
        """Sort a completion in; a group that is whole is handed to `score` at once."""
        place, index = int(completion.request.partition("/")[2]), completion.index
        group = self._open.get(place)
        if group is None or not 0 <= index < self.spec.num_generations:
            raise EngineError(f"completion {index} of {completion.request!r} was not asked for")
        check_answer(self._asked[place], completion, vocab_size=self.spec.vocab_size)
        if index in group:
            raise EngineError(f"completion {index} of {completion.request!r} came twice")
        group[index] = completion
        if len(group) == self.spec.num_generations:
            del self._open[place]
            whole = tuple(group[i] for i in range(len(group)))
            prompt = self._drawn[place].prompt
            self._scored[place] = (whole, score(prompt, whole, self.step))

    @property
    def owed(self) -> list[str]:
        """The requests that the engine has not finished, by their uids."""
        return [f"{self.step}/{place}" for place in self._open]

    @property
    def scores(self) -> list[Future[list[Score]]]:
        """What is being scored or was."""
        return [future for _, future in self._scored.values()]

    def stragglers(self) -> list[str]:
        """Requests to cancel because there are enough groups without them; they are forgotten.

        Only over-sampling cancels: which group is late depends on the clock as soon as scores
        decide (`max_rounds`), and a run that did not ask for that repeats to the bit.
        """
        if self.spec.oversample == 1 or not self._open:
            return []
        whole = self._scored if self.spec.max_rounds == 1 else self._informative()
        if len(whole) < self.spec.prompts_per_step:
            return []
        uids = self.owed
        self._canceled += len(uids)
        self._open.clear()
        return uids

    def batch(self) -> Batch:
        """The groups to learn from, in the order they were drawn; waits for their scores."""
        P = self.spec.prompts_per_step
        groups = {place: self._group(place) for place in sorted(self._scored)}
        telling = set(self._informative()) if self.spec.max_rounds > 1 else set(groups)
        order = sorted(groups, key=lambda place: (place not in telling, place))
        kept = sorted(order[:P])
        metrics = dict(self._metrics)
        if self.spec.oversample > 1:
            metrics["rollout/canceled_groups"] = float(self._canceled)
            metrics["rollout/unused_groups"] = float(len(groups) - len(kept))
        if self.spec.max_rounds > 1:
            values = [r.score.value for g in groups.values() for r in g.rollouts]
            metrics |= {
                "dynamic/rounds": float(self.rounds),
                "dynamic/groups": float(len(groups)),
                "dynamic/informative": float(len(telling)),
                "dynamic/discarded": float(len(groups) - len(kept)),
                # of all that was sampled: the groups kept are chosen for being mixed
                "dynamic/reward": float(np.mean([v for v in values if v is not None] or [0.0])),
            }
        return Batch(
            step=self.step,
            groups=tuple(groups[place] for place in kept),
            positions=tuple(self._drawn[place].position for place in kept),
            metrics=metrics,
            outcomes=self._outcomes() if self.spec.curriculum else (),
        )

    def _outcomes(self) -> tuple[Outcome, ...]:
        """Pass rates of all groups that were scored, those that are not kept too."""
        found: list[Outcome] = []
        for place in sorted(self._scored):
            drawn, rate = self._drawn[place], group_pass_rate(self._scored[place][1].result())
            found += [] if rate is None else [(drawn.position, drawn.prompt.task.uid, rate)]
        return tuple(found)

    def _informative(self) -> list[int]:
        """Places of the scored groups whose rewards are not all equal."""
        places: list[int] = []
        for place, (_, future) in self._scored.items():
            if future.done():
                values = {s.value for s in future.result() if s.value is not None}
                places += [place] if len(values) > 1 else []
        return places

    def _group(self, place: int) -> Group:
        completions, scores = self._scored[place]
        drawn = self._drawn[place]
        rollouts = tuple(
            Rollout(prompt=drawn.prompt, completion=completion, score=score)
            for completion, score in zip(completions, scores.result(), strict=True)
        )
        return Group(prompt=drawn.prompt, visit=drawn.visit, rollouts=rollouts)
