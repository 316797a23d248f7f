"""What a batch of rollouts says about the run, under TRL's metric names where TRL has one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from grpo.rewards.verdicts import verdict
from grpo.types import Group, Metrics, Rollout


def rollout_metrics(groups: Sequence[Group], reward_names: Sequence[str]) -> Metrics:
    """Rewards, lengths and verdict counts of one step.

    Lengths are in tokens; a terminated completion is one that ended by itself. Statuses are shares
    of completions. `accuracy` is the share of correct completions among those that a verifier
    judged, by the first verifier that did. With several verifiers `accuracy/NAME` is that of each.
    A reward that scored nothing has no mean, and its figure is left out.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    verdicts = [verdict(r.score) for r in rollouts]
    values_N = _values([r.score.value for r in rollouts])
    lengths_N = np.array([len(r.completion) for r in rollouts], dtype=float)
    stopped_N = np.array([r.completion.finish == "stop" for r in rollouts])
    right_N = np.array([one is True for one in verdicts])
    wrong_N = np.array([one is False for one in verdicts])
    judged = int(right_N.sum() + wrong_N.sum())
    metrics = {"reward": _mean(values_N)} if len(values_N) else {}
    metrics |= {
        "reward_std": _std(values_N),
        "frac_unscored": 1 - len(values_N) / max(1, len(rollouts)),
        "num_completions": float(len(rollouts)),
        "completions/num_tokens": float(lengths_N.sum()),
        "completions/mean_length": _mean(lengths_N),
        "completions/min_length": float(lengths_N.min(initial=np.inf)) if len(lengths_N) else 0.0,
        "completions/max_length": float(lengths_N.max(initial=0.0)),
        "completions/clipped_ratio": 1 - _mean(stopped_N),
        "completions/mean_terminated_length": _mean(lengths_N[stopped_N]),
    }
    for name, length_N in (("correct", lengths_N[right_N]), ("wrong", lengths_N[wrong_N])):
        if len(length_N):
            metrics[f"completions/mean_length_{name}"] = float(length_N.mean())
    if judged:
        metrics["accuracy"] = float(right_N.sum()) / judged
    metrics |= _accuracies(rollouts)
    return metrics | _reward_parts(rollouts, reward_names) | _statuses(rollouts)


def grader_failure(groups: Sequence[Group]) -> tuple[float, str]:
    """(share of completions left unscored because a grader failed, a sentence that says why).

    (0.0, "") where none did.
    """
    scores = [r.score for group in groups for r in group.rollouts]
    failed = [score.detail for score in scores if score.status == "grader_error"]
    if not failed:
        return 0.0, ""
    why, _ = Counter(failed).most_common(1)[0]
    said = f"a grader failed on {len(failed)} of {len(scores)} completions, which are unscored"
    return len(failed) / len(scores), f"{said}; most often: {why or 'no reason was given'}"


def part_metrics(groups: Sequence[Group], names: Sequence[str]) -> Metrics:
    """Prompts, reward, accuracy and length of each part of a mixture that the batch has."""
    metrics: Metrics = {}
    for name in names:
        part = [group for group in groups if group.prompt.task.columns.get("task") == name]
        metrics[f"tasks/{name}/prompts"] = float(len(part))
        if part:
            found = rollout_metrics(part, ())
            metrics |= {
                f"tasks/{name}/{key.rpartition('/')[2]}": found[key]
                for key in ("reward", "accuracy", "completions/mean_length", "frac_unscored")
                if key in found
            }
    return metrics


def _reward_parts(rollouts: Sequence[Rollout], names: Sequence[str]) -> Metrics:
    metrics: Metrics = {}
    for name in names:
        part_N = _values([r.score.parts.get(name) for r in rollouts])
        if len(part_N):
            metrics[f"rewards/{name}/mean"] = _mean(part_N)
            metrics[f"rewards/{name}/std"] = _std(part_N)
    return metrics


def _accuracies(rollouts: Sequence[Rollout]) -> Metrics:
    """The accuracy of each verifier by its name, where there are several."""
    said: dict[str, list[bool]] = {}
    for rollout in rollouts:
        for name, right in (rollout.score.right or {}).items():
            said.setdefault(name, []).extend([] if right is None else [right])
    several = said if len(said) > 1 else {}
    return {f"accuracy/{name}": sum(v) / len(v) for name, v in several.items() if v}


def _statuses(rollouts: Sequence[Rollout]) -> Metrics:
    counts = Counter(r.score.status for r in rollouts)
    return {f"status/{status}": count / len(rollouts) for status, count in sorted(counts.items())}


def _values(values: Sequence[float | None]) -> np.ndarray:
    return np.array([v for v in values if v is not None], dtype=float)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def group_metrics(groups: Sequence[Group]) -> Metrics:
    """How many groups teach nothing because their rewards are all equal, and which kind they are.

    All right and all wrong go by the verdicts where every scored completion has one, and by the
    sign of the reward otherwise. Fractions of the groups with at least one score.
    """
    zero = right = wrong = scored_groups = 0
    for group in groups:
        scores = [r.score for r in group.rollouts if r.score.value is not None]
        if not scores:
            continue
        scored_groups += 1
        if len({score.value for score in scores}) > 1:
            continue
        zero += 1
        verdicts = {verdict(score) for score in scores}
        if None not in verdicts:
            right += verdicts == {True}
            wrong += verdicts == {False}
        elif scores[0].value:
            right += scores[0].value > 0
        else:
            wrong += 1
    count = max(scored_groups, 1)
    return {
        "frac_reward_zero_std": zero / count,
        "frac_reward_zero_std/all_right": right / count,
        "frac_reward_zero_std/all_wrong": wrong / count,
    }
