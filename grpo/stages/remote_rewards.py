"""Verifiers as Ray actors: groups are scored on other cores, or machines, than the driver's.

Engines stream groups to the driver, which gives each to the verifier process with the shortest
queue. A process that dies is replaced, and its group is scored again (scoring is a function of the
group). The actors keep the deadlines; a process that cannot be interrupted is noticed here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

from grpo.config.schema import RewardSpec
from grpo.errors import RewardError
from grpo.outside.code import plugins
from grpo.rewards.compose import RewardSet
from grpo.types import Completion, Metrics, Prompt, Score

SPARE = 60.0  # seconds beyond the rewards' own, for a process to start and to give up
ATTEMPTS = 3  # of one group: a completion that kills its verifier every time is an error


def reward_set(specs: Sequence[RewardSpec]) -> RewardSet:
    """The rewards of a recipe, loaded in this process."""
    loaded = [plugins.load("reward", spec.name, spec.args) for spec in specs]
    return RewardSet(
        [(spec.title, reward, spec.weight) for spec, reward in zip(specs, loaded, strict=True)],
        {spec.title: spec.timeout for spec in specs},
    )


class Host:
    """What runs in a verifier process: a `RewardSet`. Plain functions may set alarms there."""

    def __init__(self, specs: Sequence[RewardSpec]) -> None:
        self.rewards = reward_set(specs)

    def score(self, prompt: Prompt, completions: Sequence[Completion], state: Any) -> list[Score]:
        """As `RewardSet.score`."""
        return self.rewards.score(prompt, completions, state)

    def take_metrics(self) -> Metrics:
        """As `RewardSet.take_metrics`."""
        return self.rewards.take_metrics()


class RemoteRewards(RewardSet):
    """A `RewardSet` whose `score` runs in one of `verifiers` Ray actors. Needs Ray to be up.

    Several threads may score at once, one per actor keeps all of them busy (`parallel`).
    """

    def __init__(self, specs: Sequence[RewardSpec], verifiers: int) -> None:
        local = reward_set(specs)  # for the names; nothing is scored here
        super().__init__(local.rewards, local.timeouts)
        self.specs, self.parallel = tuple(specs), verifiers
        self.replaced = 0
        self._guard = threading.Lock()
        self._actors = [self._start() for _ in range(verifiers)]
        self._waiting = [0] * verifiers

    @property
    def threadsafe(self) -> bool:
        """Always: each process scores one group at a time, on its main thread."""
        return True

    def score(
        self, prompt: Prompt, completions: Sequence[Completion], trainer_state: Any = None
    ) -> list[Score]:
        """As `RewardSet.score`. Raises RewardError when a group kills verifier after verifier."""
        import ray  # pyright: ignore[reportMissingImports]

        with self._guard:
            place = self._waiting.index(min(self._waiting))
            self._waiting[place] += 1
            seconds = self._waiting[place] * (sum(self.timeouts.values()) + SPARE)
        try:
            for _ in range(ATTEMPTS):
                actor = self._actors[place]
                try:
                    return ray.get(
                        actor.score.remote(prompt, completions, trainer_state), timeout=seconds
                    )
                except ray.exceptions.GetTimeoutError:
                    names = " or ".join(repr(name) for name, _, _ in self.rewards)
                    raise RewardError(
                        f"reward {names} hangs in a verifier process, which did not answer within "
                        f"{seconds:g} s; if it is only slow, raise its `timeout`"
                    ) from None
                except ray.exceptions.RayActorError:
                    self._replace(place, actor)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
        finally:
            with self._guard:
                self._waiting[place] -= 1
        raise RewardError(
            f"{ATTEMPTS} verifier processes died while scoring completions of task "
            f"{prompt.task.uid!r}"
        )

    def take_metrics(self) -> Metrics:
        """Means over the actors of what rewards logged, and how many were replaced."""
        import ray  # pyright: ignore[reportMissingImports]

        logged: dict[str, list[float]] = {}
        for actor in self._actors:
            try:
                found = ray.get(actor.take_metrics.remote())
            except ray.exceptions.RayActorError:
                continue  # replaced when it is next asked for a score
            for name, value in found.items():
                logged.setdefault(name, []).append(value)
        replaced, self.replaced = self.replaced, 0
        means = {name: sum(values) / len(values) for name, values in logged.items()}
        return means | {"verifiers/replaced": float(replaced)}

    def close(self) -> None:
        """End the actors."""
        import ray  # pyright: ignore[reportMissingImports]

        if ray.is_initialized():
            for actor in self._actors:
                ray.kill(actor)
        super().close()

    def _replace(self, place: int, dead: Any) -> None:
        with self._guard:
            if self._actors[place] is dead:
                self._actors[place] = self._start()
                self.replaced += 1

    def _start(self) -> Any:
        import ray  # pyright: ignore[reportMissingImports]

        # CPUs are only accounted for; one thread is what a verifier computes with.
        environment = {"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}}
        options = {"num_cpus": 0, "runtime_env": environment, "scheduling_strategy": "SPREAD"}
        return ray.remote(Host).options(**options).remote(_absolute(self.specs))


def _absolute(specs: Sequence[RewardSpec]) -> list[RewardSpec]:
    """Plug-in files by their absolute paths: an actor works in another folder."""
    found: list[RewardSpec] = []
    for spec in specs:
        file = plugins.split_file(spec.name)
        name = f"{os.path.abspath(file[0])}:{file[1]}" if file else spec.name
        found.append(spec.model_copy(update={"name": name, "label": spec.title}))
    return found
