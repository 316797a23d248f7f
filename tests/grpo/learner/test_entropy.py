"""Tokens chosen for their entropy, over micro-batches and ranks, against TRL's threshold."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.method.entropy import bonus_weights, top_entropy


def alone(objects):
    return list(objects)


def ones(count):
    return np.ones(count, dtype=np.float32)


@given(count=st.integers(1, 40), quantile=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.75, 0.9]))
def test_the_threshold_is_the_interpolated_quantile(count, quantile):
    torch.manual_seed(count)
    entropy = torch.rand(count, dtype=torch.float64)
    expected = entropy >= torch.quantile(entropy, 1 - quantile) - 1e-12
    parts = [entropy[:3].numpy(), entropy[3:].numpy()]
    found = top_entropy(parts, [ones(len(p)) for p in parts], quantile, alone)
    assert np.concatenate(found).astype(bool).tolist() == expected.tolist()
    assert {p.dtype for p in found} == {np.dtype("float32")}


def test_other_ranks_are_counted_and_fillers_are_not():
    entropies = [np.array([1.0, 2.0, 3.0, 4.0], np.float32), np.array([9.0, 9.0], np.float32)]
    real = [ones(4), 0 * ones(2)]
    (kept, filler) = top_entropy(entropies, real, 0.5, lambda own: [*own, 3.5, 5.0, 6.0, 7.0])
    assert kept.tolist() == [0, 0, 0, 1]  # of eight, the highest four
    assert filler.tolist() == [0, 0]
    (weights, none) = bonus_weights([kept, filler], lambda own: [*own, 3.0])
    assert weights.tolist() == pytest.approx([0, 0, 0, 0.25])
    assert none.tolist() == [0, 0]


def test_rounding_does_not_decide_between_equal_entropies():
    same = np.array([1.0, 1.0 + 1e-9, 1.0 - 1e-9, 0.5, 0.4])
    (kept,) = top_entropy([same], [ones(5)], 0.25, alone)
    assert kept.tolist() == [1, 1, 1, 0, 0]


def test_a_rank_without_tokens():
    assert top_entropy([], [], 0.5, alone) == []
    assert bonus_weights([0 * ones(2)], alone)[0].tolist() == [0, 0]
