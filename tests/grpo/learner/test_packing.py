"""Masks, weights, dead rows and packing, against what was put in."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.attention.layout import Pack
from grpo.learner.packing import micro_batches, split_minibatches
from grpo.method.advantage import reward_matrix
from grpo.method.table import ADVANTAGES
from grpo.method.weighted_rows import drop_dead, make_rows
from grpo.training.rollout_metrics import group_metrics
from grpo.types import Completion, Segment, Version
from tests.grpo.rows import EOS, group, three_groups


def rows_of(groups, **kwargs):
    advantages = ADVANTAGES["dr_grpo"].function(reward_matrix(groups))
    kwargs = {"loss_type": "dapo", "max_completion_length": 10, **kwargs}
    return make_rows(groups, advantages, **kwargs)


def total_weights(rows):
    return [float(row.columns["weights"].sum()) for row in rows]


def test_weights_count_dropped_rows():
    groups = three_groups()  # 9 rows, 41 tokens
    for loss_type, expected in [
        ("grpo", [1 / 9] * 9),
        ("dapo", [n / 41 for n in (4, 7, 2, 1, 5, 5, 3, 8, 6)]),
        ("dr_grpo", [n / 90 for n in (4, 7, 2, 1, 5, 5, 3, 8, 6)]),
    ]:
        rows = rows_of(groups, loss_type=loss_type)
        np.testing.assert_allclose(total_weights(rows), expected, rtol=1e-6)
        kept, metrics = drop_dead(rows, beta=0.0, loss_type=loss_type)
        # three of the dead group, and the 0.5 of group 2, which equals that group's mean
        assert metrics == {
            "rows/total": 9.0,
            "rows/dead": 4.0,
            "rows/masked": 0.0,
            "rows/trained": 5.0,
        }
        assert [len(row.ids) for row in kept] == [4, 7, 2, 3, 6]


def test_dead_rows_are_kept_where_they_matter():
    rows = rows_of(three_groups())
    assert len(drop_dead(rows, beta=0.01)[0]) == 9
    assert len(drop_dead(rows, beta=0.0, loss_type="bnpo")[0]) == 9


def test_unscored_and_truncated():
    groups = [
        group(
            0, 3, [4, 6, 5, 2], [1.0, 0.0, None, 0.0], finishes=["stop", "length", "stop", "stop"]
        )
    ]
    open_rows = rows_of(groups, loss_type="grpo")
    assert [row.mask.sum() for row in open_rows] == [4, 6, 0, 2]
    np.testing.assert_allclose(total_weights(open_rows), [1 / 3, 1 / 3, 0, 1 / 3], rtol=1e-6)
    masked = rows_of(groups, loss_type="grpo", mask_truncated=True)
    assert [row.mask.sum() for row in masked] == [4, 0, 0, 2]
    # TRL: a truncated completion still counts as one of the completions that are averaged
    np.testing.assert_allclose(total_weights(masked), [1 / 3, 0, 0, 1 / 3], rtol=1e-6)
    tokens = rows_of(groups, loss_type="dapo", mask_truncated=True)
    np.testing.assert_allclose(total_weights(tokens), [4 / 6, 0, 0, 2 / 6], rtol=1e-6)
    kept, metrics = drop_dead(masked, beta=1.0)
    assert len(kept) == 2
    assert metrics["rows/masked"] == 2


def test_the_end_of_sequence_token_is_trained_on_also_when_it_pads():
    rows = rows_of([group(0, 3, [4, 2], [1.0, 0.0])])
    (batch,) = micro_batches(rows, 100, share_prompts=False, pad_id=EOS)
    assert (batch.ids == EOS).sum() == 2  # of padding: an end is predicted and predicts nothing
    assert (batch.targets == EOS).sum() == 2
    assert len(batch.targets) == 6


def test_tool_tokens_are_read_but_not_trained_on():
    made = group(0, 3, [2, 2], [1.0, 0.0])
    version = Version(step=0, hash="")

    def segment(ids, source):
        return Segment(
            ids=np.array(ids),
            source=source,
            version=version,
            logprobs=np.zeros(len(ids), np.float32),
        )

    parts = (segment([5, 6], "model"), segment([7, 8, 9], "tool"), segment([10, EOS], "model"))
    completion = Completion(request="0", index=0, segments=parts, text="", finish="stop")
    object.__setattr__(made.rollouts[0], "completion", completion)
    rows = rows_of([made])
    assert rows[0].mask.tolist() == [True, True, False, False, False, True, True]
    (batch,) = micro_batches(rows[:1], 100, share_prompts=True, pad_id=0)
    assert batch.targets.tolist() == [5, 6, 10, EOS]
    assert batch.sources.tolist() == [2, 3, 7, 8]  # prompt 0-2, completion 3-9


def test_minibatches_have_denominators_of_their_own():
    groups = three_groups()
    rows = rows_of(groups, loss_type="grpo", num_minibatches=2)
    parts = split_minibatches(rows, 2)
    assert parts == [[0, 1, 2, 6, 7, 8], [3, 4, 5]]
    for part in parts:
        assert sum(total_weights([rows[i] for i in part])) == pytest.approx(1.0, rel=1e-6)


def test_group_metrics_tell_right_from_wrong():
    groups = [
        group(0, 2, [2, 2], [1.0, 1.0]),
        group(1, 2, [2, 2], [0.0, 0.0]),
        group(2, 2, [2, 2], [0.0, None]),
        group(3, 2, [2, 2], [1.0, 0.0]),
        group(4, 2, [2, 2], [None, None]),
    ]
    assert group_metrics(groups) == {
        "frac_reward_zero_std": 3 / 4,
        "frac_reward_zero_std/all_right": 1 / 4,
        "frac_reward_zero_std/all_wrong": 2 / 4,
    }


def test_a_flat_row_by_hand():
    rows = rows_of([group(0, 3, [2, 4], [1.0, 0.0]), group(1, 2, [1, 1], [1.0, 0.0])])
    (batch,) = micro_batches(rows, 100, share_prompts=True, pad_id=0)
    assert batch.rows == (1, 0, 2, 3)  # the longest first
    # what a completion ends with is not read
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 3, 0, 1]]
    assert batch.packs == (
        Pack(start=0, prompt=3, completions=((3, 3), (6, 1))),
        Pack(start=7, prompt=2, completions=((9, 0), (9, 0))),
    )
    # every first token is predicted by the last of its prompt
    assert batch.sources.tolist() == [2, 3, 4, 5, 2, 6, 8, 8]


@pytest.mark.parametrize("share", [True, False])
def test_nothing_after_the_last_trained_token_is_read(share):
    rows = rows_of([group(0, 3, [5, 4], [1.0, 0.0])])
    rows = [
        replace(row, mask=np.array(mask, dtype=bool), ids=np.arange(900, 900 + len(mask)))
        for row, mask in zip(rows, [[1, 0, 1, 0, 0], [0, 0, 0, 0]], strict=True)
    ]
    (batch,) = micro_batches(rows, 100, share_prompts=share, pad_id=0)
    read = batch.ids[batch.ids >= 900].tolist()
    assert read == [900, 901]  # the second token sees them; the third is trained, by the second
    assert batch.targets.tolist() == [900, 902]
    assert batch.sources.tolist() == [2, 4]


def test_micro_batches_are_equally_full_and_groups_stay_together():
    groups = [group(i, 10, [11] * 4, [1.0, 0.0, 0.0, 1.0]) for i in range(4)]  # 50 tokens each
    found = micro_batches(rows_of(groups), 120, share_prompts=True, pad_id=0)
    assert [b.ids.shape for b in found] == [(1, 100), (1, 100)]
    assert [len(b.packs) for b in found] == [2, 2]


def test_a_prompt_is_shared_where_that_saves_more_than_it_costs():
    def lengths(prompt, completion):
        rows = rows_of([group(0, prompt, [completion] * 3, [1.0, 0.0, 0.5])])
        (batch,) = micro_batches(rows, 10_000, share_prompts=True, pad_id=0)
        return [len(pack.completions) for pack in batch.packs]

    assert lengths(8, 100) == [3]  # 16 tokens saved of 300
    assert lengths(7, 100) == [1, 1, 1]


@settings(max_examples=60)
@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4),
    budget=st.integers(1, 60),
    share=st.booleans(),
)
def test_every_token_is_there_once_within_the_budget(lengths, budget, share):
    groups = [
        group(i, 2 + i, ls, [float(k) for k in range(len(ls))]) for i, ls in enumerate(lengths)
    ]
    rows = rows_of(groups)
    batches = micro_batches(rows, budget, share_prompts=share, pad_id=0)
    assert sorted(i for b in batches for i in b.rows) == list(range(len(rows)))
    for batch in batches:
        assert batch.ids.size <= budget or len(batch.rows) == 1
        for place, index in enumerate(batch.rows):
            mine = batch.completions == place
            row = rows[index]
            np.testing.assert_array_equal(batch.targets[mine], row.ids[row.mask])
            np.testing.assert_array_equal(
                batch.columns["logp_sampler"][mine], row.columns["logp_sampler"][row.mask]
            )
            # each token's source is the token before it, at the position before it
            flat = batch.positions.reshape(-1)[batch.sources[mine]]
            start = len(row.prompt_ids) - 1
            np.testing.assert_array_equal(flat, start + np.flatnonzero(row.mask))
