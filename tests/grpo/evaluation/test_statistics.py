"""Evaluation figures against closed forms, brute force and coverage."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.evaluation.statistics import (
    clustered_bootstrap,
    clustered_stderr,
    maj_at_k,
    paired_difference,
    pass_at_k,
    summarize,
    task_means,
)


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n, data):
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    hits = [min(subset) < correct for subset in combinations(range(n), k)]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(hits) / len(hits))


def test_pass_at_k_edges():
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)  # binomials overflow here
    for n, c, k in [(4, 2, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)]:
        with pytest.raises(ValueError, match="pass@k"):
            pass_at_k(n, c, k)


def test_maj_at_k_splits_ties_and_ignores_missing_answers():
    assert maj_at_k(["4", "4", "5"], [1, 1, 0]) == 1.0
    assert maj_at_k(["4", "5"], [1, 0]) == 0.5
    assert maj_at_k(["4", "5", "6"], [1, 0, 0]) == pytest.approx(1 / 3)
    assert maj_at_k(["5", "5", "4"], [0, 0, 1]) == 0.0
    assert maj_at_k([None, None, "4"], [0, 0, 1]) == 1.0
    assert maj_at_k([None], [0]) == 0.0


def test_interval_matches_the_normal_one_without_clusters():
    values = np.random.default_rng(0).normal(size=400)
    low, high = clustered_bootstrap(values, range(400), seed=1)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_copies_within_a_cluster_add_no_information():
    values = np.random.default_rng(0).random(40)
    plain = clustered_bootstrap(values, range(40), seed=3)
    copied = clustered_bootstrap(np.repeat(values, 16), np.repeat(np.arange(40), 16), seed=3)
    naive = clustered_bootstrap(np.repeat(values, 16), range(640), seed=3)
    assert copied == pytest.approx(plain)
    assert naive[1] - naive[0] == pytest.approx((plain[1] - plain[0]) / 4, rel=0.1)


def test_unequal_clusters_weigh_by_their_size():
    # Two clusters, A = {1, 1, 1} and B = {0}: resamples AA, AB, BA, BB have means 1, 3/4, 3/4, 0.
    low, high = clustered_bootstrap([1, 1, 1, 0], ["A", "A", "A", "B"], seed=0)
    assert (low, high) == (0.0, 1.0)
    low, high = clustered_bootstrap([1, 1, 1, 0], ["A", "A", "A", "B"], seed=0, level=0.4)
    assert (low, high) == (0.75, 0.75)


def test_coverage_of_the_interval():
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(200):
        rates = rng.beta(2, 2, size=60)  # each task its own rate: samples within it correlate
        values = (rng.random((60, 8)) < rates[:, None]).ravel().astype(float)
        low, high = clustered_bootstrap(
            values, np.repeat(np.arange(60), 8), seed=trial, resamples=1000
        )
        inside += low <= 0.5 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_bootstrap_is_seeded_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).random(50)
    once = clustered_bootstrap(values, range(50), seed=1)
    assert clustered_bootstrap(values, range(50), seed=1) == once
    assert clustered_bootstrap(values, range(50), seed=2) != once
    monkeypatch.setattr("grpo.evaluation.statistics.CHUNK", 1234)
    assert clustered_bootstrap(values, range(50), seed=1) == once


def test_bootstrap_refuses_what_has_no_mean():
    for values, clusters in [([], []), ([float("nan")], ["a"]), ([1.0], [])]:
        with pytest.raises(ValueError, match=r"bootstrap needs|values, but"):
            clustered_bootstrap(values, clusters, seed=0)
    with pytest.raises(ValueError, match="level"):
        clustered_bootstrap([1.0], ["a"], seed=0, level=95)


def test_pairing_removes_what_tasks_share():
    hard = np.random.default_rng(0).random(100)
    gap, low, high = paired_difference(hard + 0.1, hard, range(100), seed=0)
    assert (gap, low, high) == pytest.approx((0.1, 0.1, 0.1))
    alone = clustered_bootstrap(hard, range(100), seed=0)
    assert alone[1] - alone[0] > 0.1
    gap, _, _ = paired_difference([1.0, None, 1.0], [0.0, 0.0, None], "abc", seed=0)
    assert gap == 1.0
    with pytest.raises(ValueError, match="at least one value"):
        paired_difference([None], [1.0], "a", seed=0)
    with pytest.raises(ValueError, match="2 and 1 values"):
        paired_difference([1.0, 1.0], [1.0], "ab", seed=0)


def test_summary_by_hand():
    summary = summarize(
        scores=[[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, None, 1]],
        lengths=[[2, 2, 2, 2], [4, 4, 4, 4], [6, 6, 6, 6]],
        clusters=["a", "a", "b"],
        greedy=[1, 0, None],
        answers=[["4", "5", "4", "6"], ["1", "2", "3", "3"], ["7", "7", "0", "7"]],
    )
    assert summary["pass1"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert summary["greedy"] == 0.5
    assert summary["pass_at_k"] == pytest.approx({"1": 0.5, "2": (5 / 6 + 0 + 1) / 3})
    assert summary["maj_at_k"] == pytest.approx(2 / 3)
    assert summary["mean_length"] == 4.0
    assert (summary["tasks"], summary["clusters"]) == (3, 2)
    assert (summary["samples"], summary["unscored"]) == (12, 1)
    # Clusters a (mean 1/4 of two tasks) and b (1 of one task).
    assert summary["pass1_ci"] == pytest.approx([0.25, 1.0])


def test_tasks_without_a_score_leave_the_figures():
    assert task_means([[1, None], [None]]).tolist()[0] == 1.0
    summary = summarize(scores=[[1], [None]], lengths=[[3], [5]], clusters=["a", "b"])
    assert (summary["pass1"], summary["unscored"]) == (1.0, 1)
    assert summary["greedy"] is None
    assert summary["maj_at_k"] is None
    with pytest.raises(ValueError, match="at least one scored"):
        summarize(scores=[[None]], lengths=[[1]], clusters=["a"])


@pytest.mark.parametrize(("n", "k"), [(1, 1), (8, 2), (16, 8), (16, 16)])
def test_pass_at_k_is_unbiased_over_every_outcome_of_a_binomial(n, k):
    p = 0.3
    outcomes = [comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(outcomes))
    assert mean == pytest.approx(1 - (1 - p) ** k)


def test_standard_error_by_hand():
    # mean 3/4; deviations sum to -1/2 in a, 1/4 in b and c
    found = clustered_stderr([1, 0, 1, 1], ["a", "a", "b", "c"])
    assert found == pytest.approx((1 / 4 + 1 / 16 + 1 / 16) ** 0.5 / 4)
    assert clustered_stderr([1, 0], ["a", "a"]) == 0.0


def test_bootstrap_has_the_variance_of_the_closed_form():
    rng = np.random.default_rng(2)
    values = (rng.random((500, 4)) < rng.beta(2, 2, size=(500, 1))).ravel()  # tasks differ
    clusters = np.repeat(np.arange(500), 4)
    low, high = clustered_bootstrap(values, clusters, seed=0, level=0.6827)  # one sigma each side
    closed = clustered_stderr(values, clusters)
    assert (high - low) / 2 == pytest.approx(closed, rel=0.03)
    naive = clustered_stderr(values, range(2000))
    assert closed > 1.2 * naive  # samples of one task agree with one another


def test_intervals_of_every_figure_hold_the_figure():
    rng = np.random.default_rng(0)
    scores = (rng.random((60, 4)) < 0.4).astype(float).tolist()
    answers = [["right" if s else f"wrong {i}" for i, s in enumerate(row)] for row in scores]
    found = summarize(
        scores=scores, lengths=[[1] * 4] * 60, clusters=range(60), answers=answers, seed=0
    )
    assert list(found["pass_at_k_ci"]) == ["1", "2", "4"]
    assert found["pass_at_k_ci"]["1"] == found["pass1_ci"]
    for k, (low, high) in found["pass_at_k_ci"].items():
        assert low < found["pass_at_k"][k] < high
    low, high = found["maj_at_k_ci"]
    assert low < found["maj_at_k"] < high
