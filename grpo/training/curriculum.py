"""Which of the tasks that come up are asked: by difficulty measured before, or as the run goes.

A group whose completions are all right or all wrong teaches nothing (its advantages are 0). Two
rules leave such tasks out before they are sampled:

    pass_rates   measured beforehand with some policy: only tasks inside a band are asked
    adaptive     measured during the run: a task whose last groups were all right or all wrong is
                 mostly passed over, and asked again now and then, since the policy changes
                 (sampling by tracked success rates: Kimi k1.5, 2501.12599)

What is asked at a step must not depend on which thread is faster. The batch of step k is begun when
the weights of step k - 1 - staleness are in the engine. It uses the outcomes up to that step and no
later one, whatever has arrived meanwhile. Choices are made by hash of the place in the order: with
`state`, a resumed run asks what the uninterrupted one would have asked.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from grpo.data.source import stable_hash
from grpo.errors import DataError, PluginError
from grpo.outside.files.json_rows import parse_row
from grpo.rewards.verdicts import first_verdict, verdict
from grpo.types import Metrics, Score, Task

_SAID = {True: "correct", False: "wrong", None: "scored"}

Outcome = tuple[int, str, float]  # place in the task order, uid, pass rate of one group


class Rule(Protocol):
    """One reason to pass a task over. Its state depends on nothing but what `learn` was given.

    A subclass that learns nothing needs neither `learn` nor `state` nor `restore`.
    """

    def skips(self, task: Task, position: int) -> bool:
        """Whether the task at this place of the order is not asked: a function of the state."""
        ...

    def metrics(self) -> Metrics:
        """What is known now, as figures by name."""
        ...

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Take note of the groups of one step, in the order they were drawn."""

    def state(self) -> Any:
        """Plain data for `restore`."""
        return None

    def restore(self, state: Any) -> None:
        """Go on from what `state` gave."""


class Curriculum:
    """The rules of a run, by name, and the outcomes that they may not know yet.

    `staleness`: steps by which sampling may be ahead. One thread draws, another observes.
    """

    def __init__(self, rules: Sequence[tuple[str, Rule]], staleness: int = 0) -> None:
        self.rules = dict(rules)
        if len(self.rules) < len(rules):
            raise PluginError(f"curriculum: a rule is there twice: {[name for name, _ in rules]}")
        self.staleness = staleness
        self._pending: dict[int, list[Outcome]] = {}
        self._lock = threading.Lock()

    def observe(self, step: int, outcomes: Iterable[Outcome]) -> None:
        """What became of the batch of `step`."""
        with self._lock:
            self._pending[step] = sorted(outcomes)

    def advance(self, step: int) -> None:
        """Let the rules learn all that the batch of `step` may know."""
        with self._lock:
            known = [s for s in sorted(self._pending) if s <= step - 1 - self.staleness]
            for outcomes in (self._pending.pop(s) for s in known):
                for rule in self.rules.values():
                    rule.learn(outcomes)

    def skipped_by(self, task: Task, position: int) -> str | None:
        """The name of the rule that passes a task over, None if it is asked."""
        return next((n for n, rule in self.rules.items() if rule.skips(task, position)), None)

    def metrics(self) -> Metrics:
        """What the rules know, each under its own name."""
        return {
            f"curriculum/{name}/{key}": value
            for name, rule in self.rules.items()
            for key, value in rule.metrics().items()
        }

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        with self._lock:
            return {
                "rules": {name: rule.state() for name, rule in self.rules.items()},
                "pending": [[step, outcomes] for step, outcomes in sorted(self._pending.items())],
            }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, rule in self.rules.items():
            if name in state["rules"]:
                rule.restore(state["rules"][name])
        self._pending = {
            step: [(place, uid, rate) for place, uid, rate in outcomes]
            for step, outcomes in state["pending"]
        }


class PassRates(Rule):
    """Only tasks whose measured pass rate is in [low, high].

    `path` is a JSONL file (or .jsonl.gz, or a folder of them, say the `ledger` of a run). A line is
    {"task": uid, "pass_rate": 0.4}, or one sampled completion, {"task": uid, "status": "correct"};
    those of a task are counted. `unmeasured`: what happens to tasks that no line is about, "drop"
    or "keep".
    """

    def __init__(
        self, path: str, low: float = 0.1, high: float = 0.9, unmeasured: str = "drop"
    ) -> None:
        if not 0 <= low <= high <= 1:
            raise PluginError(
                f"curriculum pass_rates: low = {low}, high = {high}; valid: 0 <= low <= high <= 1"
            )
        if unmeasured not in ("drop", "keep"):
            raise PluginError(
                f"curriculum pass_rates: unmeasured = {unmeasured!r}; valid: drop, keep"
            )
        self.rates = read_pass_rates(path)
        self.keep = unmeasured == "keep"
        self.inside = {uid for uid, rate in self.rates.items() if low <= rate <= high}
        if not self.inside:
            raise DataError(
                f"curriculum pass_rates: none of the {len(self.rates)} tasks in {path} has a pass "
                f"rate from {low} to {high}; widen the band"
            )

    def skips(self, task: Task, position: int) -> bool:
        """Whether the task is outside the band."""
        return not (task.uid in self.inside or (self.keep and task.uid not in self.rates))

    def metrics(self) -> Metrics:
        """How many tasks are in the band."""
        return {"in_band": float(len(self.inside))}


class Adaptive(Rule):
    """Tasks whose last `window` groups were all right, or all wrong, are mostly skipped.

    `skip` is the chance of that each time: a task with a pass rate between 0 and 1 is asked
    1 / (1 - skip) times as often. A task that was never asked is not skipped.
    """

    def __init__(self, skip: float = 0.8, window: int = 1) -> None:
        if not 0 < skip < 1:
            raise PluginError(
                f"curriculum adaptive: skip = {skip}; valid: above 0 and below 1, so that every "
                "task is met again"
            )
        if type(window) is not int or window < 1:
            raise PluginError(f"curriculum adaptive: window = {window!r}; valid: 1 or more groups")
        self.skip, self.window = skip, window
        self.rates: dict[str, list[float]] = {}

    def skips(self, task: Task, position: int) -> bool:
        """Whether the task is too easy or too hard for now, and chance does not ask it anyway."""
        rate = self.rate(task.uid)
        return rate in (0.0, 1.0) and stable_hash("adaptive", position) < self.skip * 2**64

    def rate(self, uid: str) -> float | None:
        """The running pass rate of a task, None before its first group."""
        rates = self.rates.get(uid)
        return sum(rates) / len(rates) if rates else None

    def learn(self, outcomes: Sequence[Outcome]) -> None:
        """Keep each task's last groups."""
        for _, uid, rate in outcomes:
            self.rates[uid] = [*self.rates.get(uid, ()), rate][-self.window :]

    def metrics(self) -> Metrics:
        """How many tasks were asked so far, and the shares of them that are at 0, at 1, between."""
        rates = [self.rate(uid) for uid in self.rates]
        count = max(1, len(rates))
        return {
            "tasks": float(len(rates)),
            "all_right": rates.count(1.0) / count,
            "all_wrong": rates.count(0.0) / count,
            "between": sum(rate not in (0.0, 1.0) for rate in rates) / count,
        }

    def state(self) -> dict[str, list[float]]:
        """The rates."""
        return self.rates

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Take the rates of a checkpoint."""
        self.rates = {uid: list(rates) for uid, rates in state.items()}


CURRICULA: dict[str, Callable[..., Rule]] = {"pass_rates": PassRates, "adaptive": Adaptive}


def pass_rate(scores: Iterable[tuple[str, float | None]]) -> float | None:
    """Share that is right of (status, value) pairs; None where nothing was scored.

    A verifier's status says what is right. Rewards without a verdict only compare: equal ones count
    as all right (above 0) or all wrong, different ones as 0.5, which is between.
    """
    scored = [(status, value) for status, value in scores if value is not None]
    if not scored:
        return None
    if all(status != "scored" for status, _ in scored):
        return sum(status == "correct" for status, _ in scored) / len(scored)
    values = {value for _, value in scored}
    return 0.5 if len(values) > 1 else float(max(values) > 0)


def group_pass_rate(scores: Sequence[Score]) -> float | None:
    """`pass_rate` of the completions of one group, by what a verifier said of them."""
    return pass_rate((_SAID[verdict(score)], score.value) for score in scores)


def read_pass_rates(path: str) -> dict[str, float]:
    """uid -> pass rate, from the lines of a file or of all files of a folder. Raises DataError."""
    where = Path(path).expanduser()
    files = sorted(where.rglob("*.jsonl*")) if where.is_dir() else [where]
    rates: dict[str, float] = {}
    sampled: dict[str, list[tuple[str, float | None]]] = {}
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            uid = line.get("task")
            if not isinstance(uid, str) or not ("pass_rate" in line or "status" in line):
                raise DataError(
                    f"{file}:{number} is not a measured task: it needs task and pass_rate, or task "
                    "and status"
                )
            if "pass_rate" not in line:
                if line.get("mode") != "greedy":
                    value, status = line.get("value", 0.0), line["status"]
                    if "right" in line:
                        status = _SAID[first_verdict(line["right"].values())]
                    sampled.setdefault(uid, []).append((status, value))
                continue
            rate = line["pass_rate"]
            if not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise DataError(f"{file}:{number}: pass_rate = {rate!r} is not a share, 0 to 1")
            rates[uid] = float(rate)
    counted = {uid: pass_rate(scores) for uid, scores in sampled.items()}
    rates |= {uid: rate for uid, rate in counted.items() if rate is not None}
    if not rates:
        raise DataError(f"curriculum pass_rates: {path} has no measured tasks")
    return rates


def _lines(file: Path) -> Iterable[dict[str, Any]]:
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8-sig", newline="\n") as lines:
            found = [parse_row(line) for line in lines if line.strip()]
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"curriculum pass_rates: {file} cannot be read: {error}") from error
    if not all(isinstance(line, dict) for line in found):
        raise DataError(f"curriculum pass_rates: {file} holds lines that are no objects")
    return found
