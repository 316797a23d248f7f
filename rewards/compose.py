"""Several rewards as one: call each by TRL's convention, weigh, and keep track of what None means.

None from one reward is "not applicable": the others decide. A completion is unscored (value None)
when every reward says None, or when a verifier reports `unparseable_gold` or `grader_error`: it
then leaves its group's baseline and the loss. It is never turned into 0.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from grpo.errors import RewardError
from grpo.errors.places import place_of
from grpo.outside.code.foreign import guarded, said
from grpo.rewards import deadline, memory
from grpo.rewards.calling import UNUSABLE, as_scores, close_all, invoke, named
from grpo.rewards.verdicts import judges, verdict
from grpo.types import LARGEST_REWARD, Completion, Message, Metrics, Prompt, Score, Verifier

_OWN = ("prompt", "completion", "completion_ids", "prompts", "completions")


class RewardSet:
    """The rewards of a recipe: (name, reward, weight) each, in order.

    RewardSet([("accuracy", Accuracy(), 1.0), ("format", Format(), 0.2)])

    `timeouts`: name -> seconds that one call may take, `deadline.SECONDS` where there is none.
    """

    parallel = 1  # groups that may usefully be scored at once

    def __init__(
        self, rewards: Sequence[tuple[str, Any, float]], timeouts: Mapping[str, float] | None = None
    ) -> None:
        if not rewards:
            raise RewardError("a recipe needs at least one reward")
        self.rewards = [(name, reward, float(weight)) for name, reward, weight in rewards]
        # The status of a score is what the first of the rewards that say right or wrong says, else
        # the verdict of the verifier that weighs first.
        self.judges = tuple(name for name, reward, _ in self.rewards if judges(reward))
        self.first_verifier = next(
            (name for name, reward, _ in self.rewards if isinstance(reward, Verifier)), None
        )
        self.timeouts = {name: deadline.SECONDS for name, _, _ in self.rewards}
        self.timeouts |= timeouts or {}
        self._metrics: dict[str, list[float]] = {}
        self._loop: _Loop | None = None
        self._late = False  # something of a reward still hangs
        self._lock = threading.Lock()

    @property
    def threadsafe(self) -> bool:
        """Whether scoring may run in a thread: verifiers may, other callables are not asked to."""
        return all(isinstance(reward, Verifier) for _, reward, _ in self.rewards)

    def score(
        self, prompt: Prompt, completions: Sequence[Completion], trainer_state: Any = None
    ) -> list[Score]:
        """One `Score` per completion of one prompt, in order; `parts` holds each reward's value.

        Raises RewardError, naming the reward, if one raises, does not return in time, or does not
        return one finite number or None per completion. Safe to call from several threads and under
        a running event loop.
        """
        arguments = call_arguments(prompt, completions)
        extras = {
            "trainer_state": trainer_state,
            "log_extra": _ignore,
            "log_metric": self._log_metric,
        }
        pending: dict[int, Coroutine[Any, Any, Any]] = {}
        columns: list[list[Score]] = []
        try:
            for index in range(len(self.rewards)):
                output = self._call(index, arguments | extras)
                if not isinstance(output, list):
                    pending[index], output = output, []
                columns.append(output)
            for index, output in self._await_all(pending).items() if pending else ():
                name = self.rewards[index][0]
                if isinstance(output, deadline.LateError):
                    raise output
                if isinstance(output, BaseException):
                    raise named(name, output) from output
                columns[index] = as_scores(name, output, len(completions))
        finally:
            for coroutine in pending.values():
                if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                    coroutine.close()  # another reward failed first
        return [self.total([column[row] for column in columns]) for row in range(len(completions))]

    def take_metrics(self) -> Metrics:
        """Means of what rewards passed to `log_metric` since the last call; clears them."""
        with self._lock:
            logged, self._metrics = self._metrics, {}
        return {name: float(np.mean(values)) for name, values in logged.items()}

    def state(self) -> dict[str, Any]:
        """What the rewards remember of earlier steps, by name; {} where none does."""
        return memory.states((name, reward) for name, reward, _ in self.rewards)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the rewards go on from what `state` gave."""
        memory.restore(((name, reward) for name, reward, _ in self.rewards), state)

    def close(self) -> None:
        """Release the rewards' workers and the event loop of asynchronous rewards."""
        if not self._late:  # or it might never come back
            close_all(*(reward for _, reward, _ in self.rewards))
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()

    def total(self, scores: Sequence[Score]) -> Score:
        """One completion's scores, one of each reward in order, as the sum that is learned from."""
        names = [name for name, _, _ in self.rewards]
        parts = {name: score.value for name, score in zip(names, scores, strict=True)}
        right = {
            name: verdict(score)
            for name, score in zip(names, scores, strict=True)
            if name in self.judges
        }
        first = scores[names.index(self.first_verifier)] if self.first_verifier else None
        judged = (scores[names.index(name)] for name in self.judges)
        first = next((score for score in judged if score.status != "not_applicable"), first)
        said = Score(value=None, status="not_applicable", parts=parts, right=right)
        for name, score in zip(names, scores, strict=True):
            if score.status in UNUSABLE:
                return replace(said, status=score.status, detail=f"{name}: {score.detail}")
        weighed = [
            _weighed(name, score.value, weight)
            for (name, _, weight), score in zip(self.rewards, scores, strict=True)
            if score.value is not None
        ]
        if not weighed:
            return replace(said, detail=first.detail if first else "every reward returned None")
        if first is None or first.status == "not_applicable":
            first = next(score for score in scores if score.value is not None)
        value = math.fsum(weighed)
        return replace(said, value=value, status=first.status, detail=first.detail)

    def _log_metric(self, name: str, value: float) -> None:
        with self._lock:
            self._metrics.setdefault(name, []).append(float(value))

    def _call(self, index: int, keywords: dict[str, Any]) -> list[Score] | Coroutine[Any, Any, Any]:
        name, reward, _ = self.rewards[index]
        try:
            return deadline.within(
                name, self.timeouts[name], lambda: invoke(name, reward, keywords)
            )
        except deadline.LateError:
            self._late = True
            raise

    def _await_all(self, coroutines: Mapping[int, Coroutine[Any, Any, Any]]) -> dict[int, Any]:
        """Results or exceptions, run together on this set's own loop (the caller may hold one)."""
        with self._lock:
            self._loop = self._loop or _Loop()
            loop = self._loop
        names = {index: self.rewards[index][0] for index in coroutines}
        answers: dict[int, Any] = {}

        async def one(index: int) -> None:
            limit = asyncio.timeout(self.timeouts[names[index]])
            try:
                async with limit:
                    answers[index] = await coroutines[index]
            except BaseException as error:  # also SystemExit, which would end the loop
                answers[index] = error
                if limit.expired():
                    place = place_of(error.__cause__ or error)
                    answers[index] = deadline.late(names[index], self.timeouts[names[index]], place)

        async def together() -> None:
            await asyncio.gather(*map(one, coroutines))

        who = f"reward {' or '.join(map(repr, names.values()))}"
        longest = max(self.timeouts[name] for name in names.values())
        with guarded(who, lambda error: RewardError(f"{who}: {said(error)}")):
            future = asyncio.run_coroutine_threadsafe(together(), loop.loop)
            with suppress(TimeoutError):  # where the loop itself is held up
                future.result(longest + deadline.UNWINDING)
        for index, name in names.items():
            if index not in answers:
                place = deadline.place_of_thread(loop.thread)
                answers[index] = deadline.late(name, self.timeouts[name], place)
        if any(isinstance(answer, deadline.LateError) for answer in answers.values()):
            self._late, self._loop = True, None
            loop.stop()  # once it can
            deadline.leave_behind()
        return {index: answers[index] for index in names}


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._stopping = False
        self.thread = threading.Thread(target=self._serve, name="grpo-async", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self._stopping = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._stopping:
            # A task that a reward started, and that exits, would take the loop with it.
            with suppress(SystemExit, KeyboardInterrupt):
                self.loop.run_forever()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


def _weighed(name: str, value: float, weight: float) -> float:
    """weight * value. Raises RewardError where that is too large to learn from."""
    product = weight * value
    if not abs(product) <= LARGEST_REWARD:
        raise RewardError(
            f"reward {name!r} gave {value:g}, and its weight makes that {weight:g} times as much; "
            f"a weighted reward is at most {LARGEST_REWARD:g} in size"
        )
    return product


def call_arguments(prompt: Prompt, completions: Sequence[Completion]) -> dict[str, Any]:
    """The keywords TRL would pass for these completions: columns repeated, prefill put back.

    As in TRL, a final message of the assistant leaves the prompt: it is the completion's beginning.
    """
    task, count = prompt.task, len(completions)
    texts = [prompt.prefill + completion.text for completion in completions]
    conversational = not isinstance(task.prompt, str)
    asked = task.prompt
    if not isinstance(asked, str) and prompt.prefill and asked[-1].get("role") == "assistant":
        asked = asked[:-1]
    said: list[str | list[Message]] = [
        [{"role": "assistant", "content": text}] if conversational else text for text in texts
    ]
    columns = {name: [value] * count for name, value in task.columns.items() if name not in _OWN}
    if task.answer is not None:
        columns["answer"] = [task.answer] * count
    return {
        "prompts": [asked] * count,
        "completions": said,
        "completion_ids": [completion.ids.tolist() for completion in completions],
        **columns,
    }


def _ignore(_column: str, _values: Any) -> None:
    """`log_extra` outside TRL: completions are logged with every reward's value already."""
