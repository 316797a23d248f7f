"""Rewards made of rewards: a gate, and a route for each kind of task.

A recipe nests others in them through `args`. Routes are for rules where they can decide, and a
reward model where not.
The last stage of DeepSeek-R1 (2501.12948) trains on reasoning and on general prompts at once. A
column of the task says which route scores it; the `mixture` source writes `task`.

    column: task
    routes:
      math: {name: accuracy}
      chat:
        - {name: reward_model, args: {path: org/helpful, part: answer}, from_step: 1301}
        - {name: reward_model, args: {path: org/safe}, label: safety, from_step: 1301}

A reward with `from_step` is not applicable (None) before that step: R1 used its reward models in
the last 400 of 1,700 steps only, since longer training against them led to reward hacking. Outside
training (a held-out evaluation) every reward of a route applies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from grpo.errors import PluginError, RewardError, unknown_name
from grpo.outside.code.plugins import load
from grpo.rewards.calling import called, close_all
from grpo.rewards.compose import RewardSet
from grpo.rewards.verifier import NOT_COLUMNS, Scored, text_of
from grpo.types import Score, Task

KEYS = ("name", "args", "weight", "label", "from_step")


@dataclass(frozen=True, kw_only=True)
class _Route:
    rewards: RewardSet
    from_step: Mapping[str, int]


class Routed(Scored):
    """`routes`: the column's value -> a reward {name, args, weight, label, from_step}, or several.

    Several are added up as a recipe's `rewards` are. `default` names the route of values that have
    none; without it, such a value is an error.
    """

    __name__ = "routed"

    def __init__(
        self, routes: Mapping[str, Any], column: str = "task", default: str | None = None
    ) -> None:
        if not routes:
            raise PluginError("routed: routes maps values of the column to rewards")
        self.column = column
        self.routes = {str(value): _route(str(value), rewards) for value, rewards in routes.items()}
        if default is not None and default not in tuple(self.routes):  # whatever YAML gave
            said = unknown_name("route", str(default), self.routes)
            raise PluginError(f"routed: default: {said}")
        self.default = default

    def inner(self, task: Task) -> list[tuple[str, Any]]:
        """The rewards of a task's route, by name. Raises RewardError where it has none."""
        value = task.columns.get(self.column)
        route = self._route_named(None if value is None else str(value), task.where)
        return [(f"{route}.{label}", one) for label, one, _ in self.routes[route].rewards.rewards]

    @property
    def nested(self) -> list[tuple[str, Any]]:
        """The rewards of all routes, by route and name."""
        return [
            (f"{value}.{label}", one)
            for value, route in self.routes.items()
            for label, one, _ in route.rewards.rewards
        ]

    @property
    def judges(self) -> bool:
        """Whether a reward of some route says right or wrong."""
        return any(route.rewards.judges for route in self.routes.values())

    def scores(self, **keywords: Any) -> list[Score]:
        """One `Score` per completion, by TRL's calling convention; `parts` has its route's rewards.

        Raises RewardError for a row whose column is missing or names no route.
        """
        count = len(keywords["completions"])
        rows_of: dict[str, list[int]] = {}
        for row in range(count):
            rows_of.setdefault(self._route_of(row, keywords), []).append(row)
        step = getattr(keywords.get("trainer_state"), "global_step", None)
        found: dict[int, Score] = {}
        for name, rows in rows_of.items():
            route = self.routes[name]
            chosen = _rows(keywords, rows, count)
            columns = {
                label: called(label, reward, chosen)
                if step is None or step >= route.from_step[label]
                else [Score(value=None, status="not_applicable")] * len(rows)
                for label, reward, _ in route.rewards.rewards
            }
            self._log(keywords, name, columns)
            for place, row in enumerate(rows):
                found[row] = route.rewards.total([column[place] for column in columns.values()])
        return [found[row] for row in range(count)]

    def close(self) -> None:
        """Release what the rewards hold."""
        for route in self.routes.values():
            close_all(*(reward for _, reward, _ in route.rewards.rewards))

    def _route_of(self, row: int, keywords: Mapping[str, Any]) -> str:
        values = keywords.get(self.column)
        prompt = (keywords.get("prompts") or [""] * (row + 1))[row]
        which = f"completion {row} of prompt {text_of(prompt)[:60]!r}"
        return self._route_named(str(values[row]) if values is not None else None, which)

    def _route_named(self, value: str | None, which: str) -> str:
        """The route of a value of the column (None: there is no such column)."""
        if value in self.routes:
            return str(value)
        if self.default is not None:
            return self.default
        if value is None:
            raise RewardError(f"{which}: the task has no column {self.column!r} to choose a route")
        said = f"{which}: column {self.column!r}: {unknown_name('route', value, self.routes)}"
        raise RewardError(said)

    def _log(
        self, keywords: Mapping[str, Any], route: str, columns: Mapping[str, list[Score]]
    ) -> None:
        log: Any = keywords.get("log_metric")
        values = [(label, s.value) for label, column in columns.items() for s in column]
        for label, value in values:
            if log is not None and value is not None:
                log(f"rewards/{route}/{label}", value)


def _rows(keywords: Mapping[str, Any], rows: Sequence[int], count: int) -> dict[str, Any]:
    """What TRL would pass for these rows alone."""
    if len(rows) == count:
        return dict(keywords)
    return {
        name: values
        if name in NOT_COLUMNS or isinstance(values, str) or not isinstance(values, Sequence)
        else [values[row] for row in rows]
        for name, values in keywords.items()
    }


def _route(value: str, given: Any) -> _Route:
    entries = cast("list[Any]", [given] if isinstance(given, Mapping) else list(given or ()))
    rewards: list[tuple[str, Any, float]] = []
    from_step: dict[str, int] = {}
    for said in entries:
        where = f"routed: routes.{value}"
        if not isinstance(said, Mapping) or "name" not in said:
            raise PluginError(f"{where} is a reward {{name, args, weight, from_step}} or a list")
        entry: dict[str, Any] = dict(cast("Mapping[str, Any]", said))
        for key in entry:
            if key not in KEYS:
                raise PluginError(f"{where}: {unknown_name('key', key, KEYS)}")
        name = str(entry["name"])
        label = str(entry.get("label") or name.rpartition(":")[2])
        if label in from_step:
            raise PluginError(f"{where}: two rewards have the name {label!r}; give one a label")
        first = entry.get("from_step", 0)
        if type(first) is not int or first < 0:
            raise PluginError(f"{where}: from_step = {first!r} has to be a whole number")
        reward = load("reward", name, entry.get("args"))
        rewards.append((label, reward, float(entry.get("weight", 1.0))))
        from_step[label] = first
    if not rewards:
        raise PluginError(f"routed: routes.{value} has no reward")
    return _Route(rewards=RewardSet(rewards), from_step=from_step)


class Gate(Scored):
    """`reward` counts only where `verifier` is satisfied; elsewhere it is 0.

    A bonus for being short or well laid out must not be had for a wrong answer. Where the verifier
    has no number, neither has the gate.
    """

    __name__ = "gate"

    def __init__(
        self,
        reward: str,
        reward_args: Mapping[str, Any] | None = None,
        verifier: str = "accuracy",
        verifier_args: Mapping[str, Any] | None = None,
        threshold: float = 1.0,
    ) -> None:
        self.names = (reward, verifier)
        self.reward = load("reward", reward, reward_args)
        self.verifier = load("reward", verifier, verifier_args)
        self.threshold = threshold

    @property
    def nested(self) -> list[tuple[str, Any]]:
        """The rewards within, by name."""
        return list(zip(self.names, (self.reward, self.verifier), strict=True))

    def inner(self, _task: Task) -> list[tuple[str, Any]]:
        """The rewards that a task's columns go to, by name."""
        return self.nested

    def scores(self, **keywords: Any) -> list[Score]:
        """One `Score` per completion, by TRL's calling convention."""
        bonuses = called(self.names[0], self.reward, keywords)
        verdicts = called(self.names[1], self.verifier, keywords)
        return [self._gated(b, v) for b, v in zip(bonuses, verdicts, strict=True)]

    def _gated(self, bonus: Score, verdict: Score) -> Score:
        if verdict.value is None:
            return verdict
        if verdict.value >= self.threshold or bonus.value is None:
            return bonus
        return Score(value=0.0, status="scored", detail=f"closed: {verdict.status}")

    def close(self) -> None:
        """Release what the two rewards hold."""
        close_all(self.reward, self.verifier)
