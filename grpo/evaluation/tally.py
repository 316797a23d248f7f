"""The figures of a held-out evaluation, computed from its lines, reward by reward.

A line is a completion with its scores, as `grpo.evaluation.heldout` writes it. Rewards that say
right or wrong have accuracy and pass@k; the others have a mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from grpo.errors import DataError
from grpo.evaluation import behaviors, statistics
from grpo.rewards.math.latex import compare

# Headings of a model's row that are no reward's; one of such a name is "reward NAME".
HEADINGS = ("accuracy", "greedy", "length", "truncated", "difference")
Line = dict[str, Any]
Lines = Sequence[Line]
Value = Callable[[Line], float | None]  # of a line's completion; None: unscored


def summarize(lines: Lines, names: Sequence[str], seed: int) -> dict[str, Any]:
    """`figures` that are `checked`."""
    return checked(figures(lines, names, seed))


def checked(found: dict[str, Any]) -> dict[str, Any]:
    """`figures` whose headline has one. Raises DataError where nothing was scored."""
    name = found["headline"]
    if found["rewards"][name]["mean"] is None:
        statuses = ", ".join(sorted(found["statuses"]))
        why = f"; most often: {found['unusable']}" if found["unusable"] else ""
        raise DataError(
            f"reward {name!r} scored no held-out completion (status: {statuses}{why}), so there is "
            "no figure to report; eval.rewards names the verifiers to evaluate with"
        )
    return found


def figures(lines: Lines, names: Sequence[str], seed: int) -> dict[str, Any]:
    """What evaluation lines say of the rewards `names`, each figure under its reward's name.

    headline: the first reward that says right or wrong; its figures by
    `grpo.evaluation.statistics.summarize` stand at the top level (greedy, pass1, pass_at_k, …).
    Where no reward does, there are none of these, and the headline is the first reward that scored
    anything. rewards: of each one, mean and greedy with their intervals, and where it says right or
    wrong pass1 (None: nothing was scored). scored: how many samples each one gave a number.
    mean_reward: of the weighted sum.

    Beside them, of the sampled completions: clipped_ratio (cut by the length limit), length_right
    and length_wrong (mean tokens; None where there are none), statuses (verdict -> count), unusable
    (why a gold or a grader failed, most often; None) and what `grpo.evaluation.behaviors.summarize`
    gives.
    """
    sampled = _sampled(lines)
    of_task = {line["task"]: line["cluster"] for line in sampled}
    places, clusters = list(of_task), list(of_task.values())
    name = headline(lines, names)
    right = said(lines, name) if judged(lines, name) else None
    first: dict[str, Any] = {}
    if right is not None:
        votes = None
        if "vote" in sampled[0]:
            votes = [_alike(row) for row in _by_task(sampled, places, lambda line: line["vote"])]
        first = statistics.summarize(
            scores=_by_task(sampled, places, right),
            lengths=_by_task(sampled, places, lambda line: line["tokens"]),
            clusters=clusters,
            greedy=[right(line) for line in lines if line["mode"] == "greedy"],
            answers=votes,
            seed=seed,
        )
    scored = {n: len(sampled) - values(lines, n).count(None) for n in names}
    rewards = {n: _of_reward(lines, places, clusters, n, seed) for n in names}
    totals = _by_task(sampled, places, lambda line: line.get("value"))
    total = statistics.summarize_mean(scores=totals, clusters=clusters, seed=seed)
    details = Counter(line["detail"] for line in sampled if line.get("detail"))
    lengths = {v: [x["tokens"] for x in sampled if right and right(x) == v] for v in (1.0, 0.0)}
    return {
        "headline": name,
        "tasks": len(places),
        "clusters": len(set(clusters)),
        "samples": len(sampled),
        "unscored": len(sampled) - scored[name],
        "mean_length": float(np.mean([line["tokens"] for line in sampled])),
        **first,
        "mean_reward": total["mean"],
        "mean_reward_ci": total["mean_ci"],
        "rewards": rewards,
        "scored": scored,
        "clipped_ratio": float(np.mean([line["finish"] != "stop" for line in sampled])),
        "length_right": float(np.mean(lengths[1.0])) if lengths[1.0] else None,
        "length_wrong": float(np.mean(lengths[0.0])) if lengths[0.0] else None,
        "statuses": dict(Counter(line["status"] for line in sampled).most_common()),
        "unusable": next((detail for detail, _ in details.most_common(1)), None),
        **behaviors.summarize(line["completion"] for line in sampled),
    }


def headline(lines: Lines, names: Sequence[str]) -> str:
    """The reward whose figures stand first: see `figures`."""
    verifiers = [name for name in names if _may_judge(lines, name, names)]
    found = [name for name in verifiers if judged(lines, name)]
    if not found:  # a verifier that judged nothing still goes before a bonus
        candidates = verifiers or names
        found = [name for name in candidates if any(v is not None for v in values(lines, name))]
        found += candidates
    return found[0]


def judged(lines: Lines, name: str) -> bool:
    """Whether every sampled completion that reward `name` scored was called right or wrong."""
    right = said(lines, name)
    verdicts = [right(line) for line in _sampled(lines) if line["parts"][name] is not None]
    return bool(verdicts) and None not in verdicts


def said(lines: Lines, name: str) -> Value:
    """A function of a line: 1.0 where reward `name` said right, 0.0 for wrong, None for neither.

    Older versions wrote no verdicts. In their lines the values 0 and 1 are the verdicts.
    """

    def verdict(line: Line) -> float | None:
        if "right" in line:
            right = line["right"].get(name)
            return None if right is None else float(right)
        value = line["parts"][name]
        return value if value in (0.0, 1.0) else None

    return verdict


def columns(lines: Lines, names: Sequence[str], seed: int) -> dict[str, Any]:
    """One model's row of a table: {heading: [value, low, high], a number, or None}.

    accuracy is pass@1 of the first verifier, with its greedy accuracy, as in `figures`; there is
    none where no reward says right or wrong. Every other reward is its mean over the sampled
    completions that it applies to (not_applicable is no 0), of a verifier the share that is right;
    length is in tokens, and truncated the share of completions cut by the length limit. Intervals
    resample task clusters.
    """
    found = summarize(lines, names, seed)
    sampled = _sampled(lines)
    row: dict[str, Any] = {}
    if "pass1" in found:
        row["accuracy"] = [found["pass1"], *found["pass1_ci"]]
        row["greedy"] = found["greedy"]
    for name in names:
        if name != found["headline"] or "pass1" not in found:
            heading = f"reward {name}" if name in HEADINGS else name
            row[heading] = _pooled(sampled, value_of(lines, name), seed)
    row["length"] = _pooled(sampled, lambda line: float(line["tokens"]), seed)
    row["truncated"] = found["clipped_ratio"]
    return row


def difference(
    lines: Lines, others: Lines, name: str, seed: int
) -> tuple[float, float, float] | None:
    """(lines - others, low, high) of reward `name` over the tasks both were asked.

    In pass@1 where both were judged right or wrong, else in the mean. None where no task was scored
    in both.
    """
    of = value_of([*lines, *others], name)
    mine, theirs = (_means(found, of) for found in (lines, others))
    shared = [task for task in mine if task in theirs]
    first, second = [mine[task] for task in shared], [theirs[task] for task in shared]
    if all(a != a or b != b for a, b in zip(first, second, strict=True)):  # NaN: unscored
        return None
    clusters = {line["task"]: line["cluster"] for line in lines}
    return statistics.paired_difference(first, second, [clusters[t] for t in shared], seed)


def value_of(lines: Lines, name: str) -> Value:
    """What a figure of reward `name` is the mean of: verdicts where `judged`, else values."""
    return said(lines, name) if judged(lines, name) else lambda line: line["parts"][name]


def unscored(lines: Lines, names: Sequence[str]) -> dict[str, int]:
    """How many sampled completions each reward did not apply to, where there are any."""
    counts = {name: values(lines, name).count(None) for name in names}
    return {name: count for name, count in counts.items() if count}


def shared(lines: Lines, others: Lines) -> tuple[list[Line], list[Line]]:
    """The lines of completions that two evaluations both asked for, in the order of the first."""
    key = itemgetter("mode", "task", "sample")
    theirs = {key(line): line for line in others}
    mine = [line for line in lines if key(line) in theirs]
    return mine, [theirs[key(line)] for line in mine]


def _may_judge(lines: Lines, name: str, names: Sequence[str]) -> bool:
    """Whether a reward is a verifier; in older lines, without verdicts, only the first one is."""
    return any(name in line["right"] if "right" in line else name == names[0] for line in lines)


def _of_reward(
    lines: Lines,
    places: Sequence[str],
    clusters: Sequence[str],
    name: str,
    seed: int,
) -> dict[str, Any]:
    """The figures of one reward; greedy is in verdicts where pass1 is there."""

    def mean(of: Value) -> dict[str, Any]:
        return statistics.summarize_mean(
            scores=_by_task(_sampled(lines), places, of),
            clusters=clusters,
            greedy=[of(line) for line in lines if line["mode"] == "greedy"],
            seed=seed,
        )

    found = mean(lambda line: line["parts"][name])
    if judged(lines, name):
        right = said(lines, name)
        alike = all(line["parts"][name] == right(line) for line in lines)
        verdicts = found if alike else mean(right)
        found |= {f"pass1{key}": verdicts[f"mean{key}"] for key in ("", "_ci", "_stderr")}
        found |= {key: verdicts[key] for key in ("greedy", "greedy_ci")}
    return found


def _means(lines: Lines, of: Value) -> dict[str, float]:
    sampled = _sampled(lines)
    places = list(dict.fromkeys(line["task"] for line in sampled))
    scores = _by_task(sampled, places, of)
    return dict(zip(places, statistics.task_means(scores).tolist(), strict=True))


def _pooled(lines: Lines, of: Value, seed: int) -> list[float] | None:
    found = [(value, line["cluster"]) for line in lines if (value := of(line)) is not None]
    if not found:
        return None
    values, clusters = zip(*found, strict=True)
    return [float(np.mean(values)), *statistics.clustered_bootstrap(values, clusters, seed)]


def values(lines: Lines, name: str) -> list[float | None]:
    """Reward `name` of every sampled completion, in file order."""
    return [line["parts"][name] for line in _sampled(lines)]


def _sampled(lines: Lines) -> list[Line]:
    return [line for line in lines if line["mode"] == "sample"]


def _alike(answers: Sequence[str | None]) -> list[str | None]:
    """The answers, each replaced by the first one that says the same: 0.5 votes with \\frac12."""
    first: list[str] = []
    votes: list[str | None] = []
    for answer in answers:
        if answer is None:
            votes.append(None)
            continue
        same = next((a for a in first if a == answer or compare(answer, a)), None)
        if same is None:
            first.append(answer)
        votes.append(same or answer)
    return votes


def _by_task(lines: Lines, places: Sequence[str], of: Callable[[Line], Any]) -> list[list[Any]]:
    found: dict[str, list[Any]] = {place: [] for place in places}
    for line in lines:
        found[line["task"]].append(of(line))
    return list(found.values())
