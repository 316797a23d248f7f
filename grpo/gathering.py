"""One batch on its way: prompts drawn, completions sorted into groups, groups scored.

A batch is complete when it has `prompts_per_step` groups. Two things may ask for more prompts than
that. Over-sampling begins some more and cancels the slowest. Dynamic sampling (DAPO, 2503.14476)
wants groups whose rewards differ, and draws another round until there are enough or `max_rounds`
are over; groups that teach nothing then fill the places that are left. A curriculum passes tasks
over before they are sampled (`grpo/curriculum.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from grpo.curriculum import Curriculum, Outcome, group_pass_rate
from grpo.data.mixture import task_sampling
from grpo.data.prompts import PromptTemplate
from grpo.data.source import TaskOrder, stable_hash
from grpo.errors import DataError, EngineError, RunError
from grpo.identity import row_digest
from grpo.rollout.answers import check_answer
from grpo.types import (
    Completion,
    Group,
    Metrics,
    Prompt,
    Request,
    Rollout,
    Row,
    Sampling,
    Score,
    Segment,
    Version,
)

BARREN = 10_000  # tasks that a curriculum may pass over in a row, besides two whole epochs
TRAIN_SPLIT = 0  # second number of a noise key; 1 is held-out, 2 the parity gate


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """What every batch asks for. A rank of several asks for the places where `mine` is true."""

    tasks: TaskOrder
    template: PromptTemplate
    sampling: Sampling
    prompts_per_step: int
    num_generations: int
    seed: int
    oversample: float = 1.0
    max_rounds: int = 1
    mine: Callable[[int], bool] = lambda place: True
    curriculum: Curriculum | None = None
    length_at: Callable[[int], int] | None = None  # max_tokens of a step, where that changes
    names: tuple[str, ...] = ()  # parts of a mixture, as in the column `task`
    vocab_size: int | None = None  # token ids that the policy knows; None: not checked

    def max_tokens(self, step: int) -> int:
        """The greatest length of a completion sampled for `step`."""
        return self.length_at(step) if self.length_at else self.sampling.max_tokens


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A prompt in its batch; `position` in the task order finds it again."""

    prompt: Prompt
    visit: int
    position: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step learns from; `positions` of its groups in the task order."""

    step: int
    groups: tuple[Group, ...]
    positions: tuple[int, ...]
    metrics: Metrics
    outcomes: tuple[Outcome, ...] = ()  # of all that was scored, where a curriculum learns from it


def draw(spec: RolloutSpec, count: int, step: int = 1) -> tuple[list[Drawn], Metrics]:
    """The next `count` prompts that are asked and fit; how many were not. DataError if none is."""
    curriculum = spec.curriculum
    if curriculum is not None:
        curriculum.advance(step)
    skipped = {f"curriculum/{n}/skipped": 0.0 for n in curriculum.rules} if curriculum else {}
    barren = 0  # tasks passed over in a row
    drawn: list[Drawn] = []
    before = dict(spec.template.counts)
    refused = 0
    while len(drawn) < count:
        first = spec.tasks.position
        for offset, (task, visit) in enumerate(spec.tasks.take(count - len(drawn))):
            rule = curriculum.skipped_by(task, first + offset) if curriculum else None
            barren = 0 if rule is None else barren + 1
            if rule is not None:
                skipped[f"curriculum/{rule}/skipped"] += 1
                continue
            prompt = spec.template.render(task)
            if prompt is None:
                refused += 1
            else:
                drawn.append(Drawn(prompt=prompt, visit=visit, position=first + offset))
        if refused > 1000 + 100 * count:
            raise DataError(
                f"{refused} prompts of one step are longer than data.max_prompt_length, or than "
                "what completions leave of the model's positions; raise the limit, or set "
                "data.overlong=truncate"
            )
        if barren > BARREN + 2 * (spec.tasks.size or 0):
            raise DataError(
                f"the curriculum passed over {barren} tasks in a row; widen its band, or set "
                "unmeasured=keep"
            )
    now = spec.template.counts
    counts = {f"prompts/{k}": float(now[k] - before[k]) for k in ("dropped", "truncated")}
    return drawn, counts | skipped


def with_temperatures(
    rows: Sequence[Row], groups: Sequence[Group], sampling: Sampling
) -> list[Row]:
    """The rows of `groups`, with the temperature of those sampled at one of their task's own."""
    own = [task_sampling(group.prompt.task, sampling).temperature for group in groups]
    return [
        row if own[row.group] == sampling.temperature else replace(row, temperature=own[row.group])
        for row in rows
    ]


class BatchAssembler:
    """The batch of `step` while it is sampled and scored."""

    def __init__(self, spec: RolloutSpec, step: int) -> None:
        self.spec = spec
        self.step = step
        self.rounds = 0
        self._drawn: list[Drawn] = []
        self._asked: dict[int, Request] = {}  # place -> its request
        self._open: dict[int, dict[int, Completion]] = {}  # place -> its completions so far
        self._scored: dict[int, tuple[tuple[Completion, ...], Future[list[Score]]]] = {}
        self._metrics: Metrics = {}
        self._canceled = 0

    def more(self) -> list[Request]:
        """The requests of the first or the next round; [] when no further one is called for."""
        spec = self.spec
        if self.rounds == 0:
            # 10 * 1.1 is a little more than 11
            count = math.ceil(spec.prompts_per_step * spec.oversample - 1e-9)
        elif self.rounds < spec.max_rounds and not self._open and self._all_scored():
            found = len(self._informative())
            missing = spec.prompts_per_step - found
            # as many as it takes if the next round turns out like those before
            expected = -(-missing * len(self._scored) // max(found, 1))
            count = min(spec.prompts_per_step, expected) if missing > 0 else 0
        else:
            count = 0
        if not count:
            return []
        self.rounds += 1
        start = len(self._drawn)
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

    def _request(self, place: int) -> Request:
        drawn, spec = self._drawn[place], self.spec
        task = stable_hash(drawn.prompt.task.uid)
        length = spec.max_tokens(self.step)
        return Request(
            uid=f"{self.step}/{place}",
            ids=drawn.prompt.ids,
            n=spec.num_generations,
            sampling=task_sampling(drawn.prompt.task, spec.sampling, length),
            key=(spec.seed, TRAIN_SPLIT, task, drawn.visit),
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
    def under_way(self) -> bool:
        """Whether the engine still owes completions."""
        return bool(self._open)

    @property
    def owed(self) -> list[str]:
        """The requests that the engine has not finished."""
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
        if self.spec.oversample == 1:
            return []
        if self.spec.max_rounds == 1:
            enough = len(self._scored) >= self.spec.prompts_per_step
        else:
            enough = len(self._informative()) >= self.spec.prompts_per_step
        if not (enough and self._open):
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
        for place, (_, future) in sorted(self._scored.items(), key=lambda item: item[0]):
            drawn, rate = self._drawn[place], group_pass_rate(future.result())
            found += [] if rate is None else [(drawn.position, drawn.prompt.task.uid, rate)]
        return tuple(found)

    def _all_scored(self) -> bool:
        return all(future.done() for _, future in self._scored.values())

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


def to_json(batch: Batch) -> dict[str, Any]:
    """A batch as plain data, exact to the bit; prompts are found again by their positions."""
    return {
        "step": batch.step,
        "metrics": batch.metrics,
        "outcomes": batch.outcomes,
        "groups": [
            {
                "position": position,
                "prompt": _digest(group.prompt),
                "completions": [_completion_json(r.completion) for r in group.rollouts],
                "scores": [
                    [
                        r.score.value,
                        r.score.status,
                        r.score.detail,
                        dict(r.score.parts),
                        None if r.score.right is None else dict(r.score.right),
                    ]
                    for r in group.rollouts
                ],
            }
            for position, group in zip(batch.positions, batch.groups, strict=True)
        ],
    }


def _digest(prompt: Prompt) -> str:
    """Of a task and the tokens it became."""
    task = prompt.task
    return row_digest(task.uid, task.prompt, task.answer, dict(task.columns), prompt.ids).hex()


def _completion_json(completion: Completion) -> dict[str, Any]:
    return {
        "request": completion.request,
        "text": completion.text,
        "finish": completion.finish,
        "segments": [
            [s.ids.tolist(), s.source, [s.version.step, s.version.hash], s.logprobs.tolist()]
            for s in completion.segments
        ],
    }


def from_json(saved: dict[str, Any], spec: RolloutSpec) -> Batch:
    """The batch that `to_json` wrote; prompts are rendered again from the tasks."""
    groups: list[Group] = []
    for entry in saved["groups"]:
        task, visit = spec.tasks.at(entry["position"])
        prompt = spec.template.render(task)
        if prompt is None:
            raise DataError(f"task {task.uid} of a saved batch no longer fits its template")
        if entry.get("prompt", _digest(prompt)) != _digest(prompt):
            raise RunError(
                f"the data gives other tasks than those whose completions are saved for step "
                f"{saved['step']} (now {task.uid} there): its source, the chat template or the "
                "tokenizer is not what it was; put it back, or start a new run from the checkpoint"
            )
        pairs = zip(entry["completions"], entry["scores"], strict=True)
        rollouts = tuple(
            Rollout(
                prompt=prompt,
                completion=_completion(completion, index),
                score=Score(value=value, status=status, detail=detail, parts=parts, right=right),
            )
            for index, (completion, (value, status, detail, parts, right)) in enumerate(pairs)
        )
        groups.append(Group(prompt=prompt, visit=visit, rollouts=rollouts))
    return Batch(
        step=saved["step"],
        groups=tuple(groups),
        positions=tuple(entry["position"] for entry in saved["groups"]),
        metrics=saved["metrics"],
        outcomes=tuple((place, uid, rate) for place, uid, rate in saved["outcomes"]),
    )


def _completion(saved: dict[str, Any], index: int) -> Completion:
    segments = tuple(
        Segment(
            ids=np.array(ids, dtype=np.int64),
            source=source,
            version=Version(step=step, hash=digest),
            logprobs=np.array(logprobs, dtype=np.float32),
        )
        for ids, source, (step, digest), logprobs in saved["segments"]
    )
    return Completion(
        request=saved["request"],
        index=index,
        segments=segments,
        text=saved["text"],
        finish=saved["finish"],
    )
