"""A number of one's own for each token, from the groups to the loss, whatever rows pass through."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import PluginError
from grpo.learner.learner import TorchLearner
from grpo.learner.packing import even_micro_batches, micro_batches, place
from grpo.method import losses, table
from grpo.method.advantage import dr_grpo, reward_matrix
from grpo.method.losses import Clip, LossInputs
from grpo.method.objective import Objective
from grpo.method.weighted_rows import make_rows
from grpo.types import LoraSpec
from tests.grpo.rows import group, tiny_model, with_columns


def groups():
    """Three tasks, with tokens of a tool and an unscored completion."""
    return [
        group(0, 3, [4, 7, 2], [1.0, 0.0, 0.5], tools=[(4, 4), (2, 5), (2, 2)]),
        group(1, 6, [1, 5, 5], [1.0, None, 0.0]),
        group(2, 2, [3, 8, 6], [0.0, 0.5, 1.0]),
    ]


def marks(groups):
    """A number that no other token has."""
    return {
        "mark": [
            [np.arange(1, len(r.completion) + 1) / 64 + i + 4 * p for i, r in enumerate(g.rollouts)]
            for p, g in enumerate(groups)
        ]
    }


def weighed(inputs, clip):
    """REINFORCE in which a token's mark is a factor."""
    return -inputs.columns["mark"] * inputs.advantages * inputs.logp, {
        "mark": inputs.columns["mark"]
    }


def rows_of(objective, **settings):
    found = groups()
    advantages = dr_grpo(reward_matrix(found))
    return make_rows(found, advantages, loss_type=objective, max_completion_length=10, **settings)


OWN = Objective(token_loss=weighed, columns=marks)
PLAIN = Objective(token_loss=lambda inputs, clip: (-inputs.advantages * inputs.logp, {}))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("temperatures", [(None,), (0.5, 2.0, None)])
def test_every_token_keeps_its_own_through_packing(share, temperatures):
    rows = rows_of(OWN)
    rows = [
        replace(row, temperature=temperatures[i % len(temperatures)]) for i, row in enumerate(rows)
    ]
    seen = 0
    for batch in micro_batches(rows, 20, share_prompts=share, pad_id=0):
        there = place(batch, torch.device("cpu"))
        for number, index in enumerate(batch.rows):
            mine = batch.completions == number
            expected = rows[index].columns["mark"][rows[index].mask]
            np.testing.assert_array_equal(there.columns["mark"][mine], expected)
            seen += len(expected)
    assert seen == sum(row.mask.sum() for row in rows) == 33


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("settings", [{}, {"num_minibatches": 2, "num_iterations": 2}])
@pytest.mark.parametrize("share", [True, False])
def test_the_loss_reads_it_as_if_it_were_in_the_advantages(share, settings, lora_rank, monkeypatch):
    monkeypatch.setitem(table.OBJECTIVES, "own", OWN)
    monkeypatch.setitem(table.OBJECTIVES, "plain", PLAIN)
    minibatches = settings.get("num_minibatches", 1)
    trained = {}
    for name, objective in (("own", OWN), ("plain", PLAIN)):
        rows = rows_of(objective, num_minibatches=minibatches)
        if name == "plain":
            factors = [row.columns["mark"] for row in rows_of(OWN)]
            rows = [
                with_columns(row, advantages=row.columns["advantages"] * factor)
                for row, factor in zip(rows, factors, strict=True)
            ]
        learner = TorchLearner(
            tiny_model(dtype=torch.float32),
            algorithm=Algorithm(loss_type=name, **settings),
            config=Config(learning_rate=1e-2, tokens_per_micro_batch=24, share_prompts=share),
            lora=LoraSpec(rank=lora_rank) if lora_rank else None,
        )
        metrics = learner.step([row for row in rows if row.mask.any()])
        trained[name] = [p.detach().clone() for p in learner.trained.values()]
        if name == "own":
            marked = np.concatenate([row.columns["mark"][row.mask] for row in rows])
            assert metrics["mark"] == pytest.approx(marked.mean(), rel=1e-5)
    for own, plain in zip(trained["own"], trained["plain"], strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-7)


def fillers(rows):
    """A rank with so many rows, and the micro-batches it runs because another has three more."""
    mine = [row for row in rows_of(OWN) if row.mask.any()][:rows]
    alone = micro_batches(mine, 24, True, pad_id=0)

    def gather(objects):
        counts = bool(objects) and isinstance(objects[0], int)
        return [*objects, len(alone) + 3 if counts else ("mark", 0.25)]

    batches, real = even_micro_batches(mine, 24, True, gather)
    assert len(batches) == len(alone) + 3
    assert real == 2 * len(alone) + 3
    return alone, batches[len(alone) :]


@pytest.mark.parametrize("rows", [0, 8])
def test_a_rank_with_fewer_micro_batches_has_the_column_too_and_weighs_nothing(rows):
    alone, found = fillers(rows)
    for batch in found:
        assert batch.rows == ()
        zero = {name for name, column in batch.columns.items() if not column.any()}
        assert zero == {"logp_sampler", "advantages", "weights"}
        own = alone[-1].columns["mark"] if rows else np.float32([0.25])
        np.testing.assert_array_equal(batch.columns["mark"], own)


@pytest.mark.parametrize("rows", [0, 8])
def test_a_loss_may_divide_by_its_column_where_a_rank_has_no_row_left(rows, monkeypatch):
    """With 0 in the column, 0 / 0 made the gradient of all ranks no number."""

    def divided(inputs, clip):
        return -inputs.advantages * inputs.logp / inputs.columns["mark"].sqrt(), {}

    monkeypatch.setitem(table.OBJECTIVES, "divided", Objective(token_loss=divided, columns=marks))
    learner = TorchLearner(
        tiny_model(dtype=torch.float32),
        algorithm=Algorithm(loss_type="divided"),
        config=Config(tokens_per_micro_batch=24),
    )
    loss, _, _ = learner.loss(place(fillers(rows)[1][0], learner.device))
    loss.backward()
    assert not any(p.grad.any() for p in learner.trained.values())


def test_an_unknown_column_is_told_with_those_that_are_there(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def loss(inputs, clip):\n    return inputs.columns['mrak'] * inputs.logp, {}\n"
    )
    learner = TorchLearner(
        tiny_model(dtype=torch.float32),
        algorithm=Algorithm(loss_type=f"{file}:loss"),
        config=Config(),
    )
    said = r"unknown column of LossInputs 'mrak'\. Did you mean 'mark'\? Valid: advantages, logp_s"
    with pytest.raises(PluginError, match=said):
        learner.step([row for row in rows_of(OWN) if row.mask.any()])


def test_a_built_in_with_one_more_number_per_token_is_two_edits(monkeypatch):
    """An entry of the table, and a function among the losses; nothing else names the column."""

    def doubted(inputs: LossInputs, clip: Clip, /, *, doubt: float):  # edit 1: losses.py
        return -(1 - doubt * inputs.columns["mark"]) * inputs.advantages * inputs.logp, {}

    entry = Objective(  # edit 2: table.py
        token_loss="doubted",
        columns=marks,
        arguments={"doubt": table.Argument(0.5, table.POSITIVE)},
    )
    monkeypatch.setattr(losses, "doubted", doubted, raising=False)
    monkeypatch.setitem(table.OBJECTIVES, "doubted", entry)
    with pytest.raises(ValueError, match="doubt = -1: it is a number above 0"):
        Algorithm(loss_type="doubted", loss_args={"doubt": -1})
    rows = [row for row in rows_of("doubted") if row.mask.any()]
    for args, doubt in (({}, 0.5), ({"doubt": 0.25}, 0.25)):
        learner = TorchLearner(
            tiny_model(dtype=torch.float32),
            algorithm=Algorithm(loss_type="doubted", loss_args=args, sampling_correction="none"),
            config=Config(),
        )
        expected = 0.0
        for row, logp in zip(rows, learner.logprobs(rows), strict=True):
            factor = (1 - doubt * row.columns["mark"]) * row.columns["advantages"]
            expected -= float((row.columns["weights"] * factor * np.nan_to_num(logp)).sum())
        assert learner.step(rows)["loss"] == pytest.approx(expected, rel=1e-5)
