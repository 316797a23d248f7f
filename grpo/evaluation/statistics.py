"""Figures of an evaluation, with their uncertainty: pure numpy, no model.

Tasks that share a cluster (7*8 and 8*7) are not independent. Intervals therefore resample whole
clusters, not tasks or samples. A score is a number from 0 to 1; 1 is correct, None or NaN unscored.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import compress
from typing import Any

import numpy as np

RESAMPLES = 10_000
CHUNK = 4_000_000  # indices drawn at once by the bootstrap: bounds memory at 32 MB


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased chance that one of `k` samples is right, from `correct` of `n` (Chen et al. 2021).

    1 - C(n - correct, k) / C(n, k) as a product, which does not overflow. Raises ValueError unless
    1 <= k <= n and 0 <= correct <= n.
    """
    if not (1 <= k <= n and 0 <= correct <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n, 0 <= correct <= n; got {n=}, {correct=}, {k=}")
    if n - correct < k:
        return 1.0
    wrong = np.arange(n - correct + 1, n + 1, dtype=np.float64)
    return float(1.0 - np.prod(1.0 - k / wrong))


def maj_at_k(answers: Sequence[Hashable | None], scores: Sequence[float]) -> float:
    """Expected score of the most frequent answer of one task's samples (cons@k, self-consistency).

    Samples without an answer (None) do not vote. Of answers that tie, one is drawn at random, so
    the mean of their scores is returned; 0 if nobody votes.
    """
    votes: dict[Hashable, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(score)
    if not votes:
        return 0.0
    most = max(map(len, votes.values()))
    return float(np.mean([np.mean(group) for group in votes.values() if len(group) == most]))


def clustered_bootstrap(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable],
    seed: int,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of `values` [N], resampling whole clusters.

    Each resample draws as many clusters as there are, with replacement, and takes the mean over all
    their values. Equal values everywhere give an interval of width 0, as does a single cluster: the
    bootstrap knows nothing beyond its sample. Raises ValueError for no values or for NaN.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or np.isnan(data).any():
        raise ValueError("a bootstrap needs at least one value, and no NaN")
    if len(clusters) != data.size:
        raise ValueError(f"{data.size} values, but {len(clusters)} clusters")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    members = _numbered(clusters)
    sums_C = np.bincount(members, weights=data)
    sizes_C = np.bincount(members).astype(np.float64)
    count = len(sums_C)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, CHUNK // count)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = rng.integers(count, size=(stop - start, count))
        means[start:stop] = sums_C[drawn].sum(axis=1) / sizes_C[drawn].sum(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def clustered_stderr(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean of `values` [N] where whole clusters are independent.

    The square root of sum over clusters of (sum of deviations)^2, divided by N (Miller 2024, arXiv
    2411.00640, with every cluster drawn from an endless supply); 0 for a single cluster.
    """
    data = np.asarray(values, dtype=np.float64)
    sums_C = np.bincount(_numbered(clusters), weights=data - data.mean())
    return float(np.sqrt((sums_C**2).sum()) / data.size)


def paired_difference(
    a: Sequence[float | None],
    b: Sequence[float | None],
    clusters: Sequence[Hashable],
    seed: int,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """(difference, low, high) of the means a - b of two runs on the same tasks, in one order.

    The differences are resampled by cluster, so what makes a task hard cancels. Tasks that either
    run left unscored are dropped from both. Raises ValueError if none is left.
    """
    if not len(a) == len(b) == len(clusters):
        raise ValueError(f"{len(a)} and {len(b)} values, {len(clusters)} clusters")
    gaps, names = _scored_tasks(_floats(a) - _floats(b), clusters)
    low, high = clustered_bootstrap(gaps, names, seed, resamples=resamples, level=level)
    return float(gaps.mean()), low, high


def task_means(scores: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Mean score of each task's scored samples, float64 [N]; NaN where no sample was scored."""
    means = np.full(len(scores), np.nan)
    for i, row in enumerate(scores):
        values = _scored(row)
        if values.size:
            means[i] = values.mean()
    return means


def summarize(
    *,
    scores: Sequence[Sequence[float | None]],
    lengths: Sequence[Sequence[int]],
    clusters: Sequence[Hashable],
    greedy: Sequence[float | None] | None = None,
    answers: Sequence[Sequence[Hashable | None]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything an evaluation reports, ready for JSON, from per-task lists over its samples.

    `greedy` has one score a task, `answers` the extracted answers (for maj@k). Returns

        greedy, greedy_ci (None without `greedy`) · pass1, pass1_ci: mean over samples, then tasks ·
        pass1_stderr · pass_at_k {"1": …, "2": …, "4": …}: powers of two up to the fewest samples
        any task has, for scores of 1 · pass_at_k_ci, by the same keys · maj_at_k, maj_at_k_ci
        (None without `answers`) · mean_length in tokens · tasks, clusters, samples, unscored

    Unscored samples are left out of every figure and counted. Raises ValueError if all are.
    """
    means = task_means(scores)
    kept, names = _scored_tasks(means, clusters)
    if not kept.size:
        raise ValueError("an evaluation needs at least one scored sample")
    samples = [values for values in map(_scored, scores) if values.size]
    counts = [(len(values), int((values >= 1.0).sum())) for values in samples]
    ks = [2**i for i in range(min(n for n, _ in counts).bit_length())]
    solved_K = {str(k): [pass_at_k(n, right, k) for n, right in counts] for k in ks}
    greedy_scores = None if greedy is None else _floats(greedy)
    votes = None if answers is None else _majority(answers, scores)
    total = sum(len(row) for row in scores)
    return {
        **_mean_and_interval("greedy", greedy_scores, clusters, seed),
        **_mean_and_interval("pass1", means, clusters, seed),
        "pass1_stderr": clustered_stderr(kept, names),
        "pass_at_k": {k: float(np.mean(solved)) for k, solved in solved_K.items()},
        "pass_at_k_ci": {
            k: list(clustered_bootstrap(solved, names, seed)) for k, solved in solved_K.items()
        },
        **_mean_and_interval("maj_at_k", votes, clusters, seed),
        "mean_length": float(np.mean(np.concatenate([np.asarray(row) for row in lengths]))),
        "tasks": len(scores),
        "clusters": len(set(clusters)),
        "samples": total,
        "unscored": total - sum(n for n, _ in counts),
    }


def summarize_mean(
    *,
    scores: Sequence[Sequence[float | None]],
    clusters: Sequence[Hashable],
    greedy: Sequence[float | None] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """The figures of a reward that is a number and no verdict, from per-task lists over samples.

    mean, mean_ci, mean_stderr: over samples, then tasks · greedy, greedy_ci: of the one score a
    task has in `greedy`. Each is None where nothing was scored.
    """
    means = task_means(scores)
    kept, names = _scored_tasks(means, clusters)
    return {
        **_mean_and_interval("mean", means, clusters, seed),
        "mean_stderr": clustered_stderr(kept, names) if kept.size else None,
        **_mean_and_interval("greedy", _floats(greedy) if greedy else None, clusters, seed),
    }


def _mean_and_interval(
    name: str, values: np.ndarray | None, clusters: Sequence[Hashable], seed: int
) -> dict[str, Any]:
    if values is None or np.isnan(values).all():
        return {name: None, f"{name}_ci": None}
    kept, names = _scored_tasks(values, clusters)
    return {name: float(kept.mean()), f"{name}_ci": list(clustered_bootstrap(kept, names, seed))}


def _majority(
    answers: Sequence[Sequence[Hashable | None]], scores: Sequence[Sequence[float | None]]
) -> np.ndarray:
    """`maj_at_k` of each task over its scored samples, float64 [N]; NaN where none was scored."""
    values = np.full(len(scores), np.nan)
    for i, (given, row) in enumerate(zip(answers, scores, strict=True)):
        pairs = [(a, s) for a, s in zip(given, row, strict=True) if s is not None and s == s]
        if pairs:
            values[i] = maj_at_k([a for a, _ in pairs], [s for _, s in pairs])
    return values


def _numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """Each cluster as a number from 0, int [N], in the order in which clusters first appear."""
    number = {cluster: i for i, cluster in enumerate(dict.fromkeys(clusters))}
    return np.array([number[cluster] for cluster in clusters])


def _scored_tasks(
    values: np.ndarray, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, list[Hashable]]:
    """The values [N] that are not NaN, with their clusters."""
    kept = ~np.isnan(values)
    return values[kept], list(compress(clusters, kept))


def _floats(values: Sequence[float | None]) -> np.ndarray:
    """float64 [N], NaN for None."""
    return np.array(values, dtype=np.float64)


def _scored(values: Sequence[float | None]) -> np.ndarray:
    array = _floats(values)
    return array[~np.isnan(array)]
