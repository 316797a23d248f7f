"""What a batch of rollouts says about the run, under TRL's metric names where TRL has one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from grpo.types import Group, Metrics, Rollout

# A candidate that gives no answer, hangs or bursts a limit did not solve the task.
WRONG = ("wrong", "unparseable_answer", "timeout", "limit")


def rollout_metrics(groups: Sequence[Group], reward_names: Sequence[str]) -> Metrics:
    """Rewards, lengths and verdict counts of one step.

    Lengths are in tokens; a terminated completion is one that ended by itself. Statuses are shares
    of completions. `accuracy` is the share of correct ones among those with a verdict.
    """
    rollouts = [r for group in groups for r in group.rollouts]
    values_N = _values([r.score.value for r in rollouts])
    lengths_N = np.array([len(r.completion) for r in rollouts], dtype=float)
    stopped_N = np.array([r.completion.finish == "stop" for r in rollouts])
    right_N = np.array([r.score.status == "correct" for r in rollouts])
    wrong_N = np.array([r.score.status in WRONG for r in rollouts])
    verdicts = int(right_N.sum() + wrong_N.sum())
    metrics = {
        "reward": _mean(values_N),
        "reward_std": float(values_N.std(ddof=1)) if len(values_N) > 1 else 0.0,
        "frac_unscored": 1 - len(values_N) / max(1, len(rollouts)),
        "num_completions": float(len(rollouts)),
        "completions/num_tokens": float(lengths_N.sum()),
        "completions/mean_length": _mean(lengths_N),
        "completions/min_length": float(lengths_N.min(initial=np.inf)) if len(lengths_N) else 0.0,
        "completions/max_length": float(lengths_N.max(initial=0.0)),
        "completions/clipped_ratio": 1 - _mean(stopped_N),
        "completions/mean_terminated_length": _mean(lengths_N[stopped_N]),
        "completions/mean_length_correct": _mean(lengths_N[right_N]),
        "completions/mean_length_wrong": _mean(lengths_N[wrong_N]),
    }
    if verdicts:
        metrics["accuracy"] = float(right_N.sum()) / verdicts
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
        metrics[f"rewards/{name}/mean"] = _mean(part_N)
        metrics[f"rewards/{name}/std"] = float(part_N.std(ddof=1)) if len(part_N) > 1 else 0.0
    return metrics


def _statuses(rollouts: Sequence[Rollout]) -> Metrics:
    counts = Counter(r.score.status for r in rollouts)
    return {f"status/{status}": count / len(rollouts) for status, count in sorted(counts.items())}


def _values(values: Sequence[float | None]) -> np.ndarray:
    return np.array([v for v in values if v is not None], dtype=float)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
