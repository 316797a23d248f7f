"""The learning rates of a run beside those of transformers' schedulers, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from grpo.config import config as recipes
from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import RecipeError
from grpo.learner.learner import TorchLearner
from grpo.learner.optimizers import learning_rate
from grpo.method.weighted_rows import make_rows
from tests.grpo.rows import group, tiny_model

PEAK = 2e-5


def theirs(kind: str, warmup: int, steps: int, **kwargs: Any) -> list[float]:
    """The rate that each optimizer step of transformers' Trainer uses."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=PEAK)
    scheduler = get_scheduler(kind, optimizer, warmup, steps, kwargs)
    found: list[float] = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("cosine", {"num_cycles": 1.5}),
        ("cosine_with_restarts", {"num_cycles": 3}),
        ("cosine_with_min_lr", {"min_lr": 4e-6}),
        ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("polynomial", {"power": 2.0, "lr_end": 1e-6}),
        ("polynomial", {}),
        ("inverse_sqrt", {}),
        ("inverse_sqrt", {"timescale": 7}),
    ],
)
@pytest.mark.parametrize("updates", [1, 4])
def test_every_curve_is_that_of_transformers(
    kind: Any, kwargs: dict[str, Any], warmup: int, updates: int
) -> None:
    batches = 24 // updates
    config = Config(
        learning_rate=PEAK,
        max_steps=batches,
        warmup_steps=warmup,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=kwargs,
        lr_scheduler_step="optimizer",
    )
    ours = [
        learning_rate(config, batch, update, updates)
        for batch in range(batches)
        for update in range(updates)
    ]
    assert ours == pytest.approx(theirs(kind, warmup, 24, **kwargs), rel=1e-12, abs=1e-20)


def test_each_optimizer_step_of_a_batch_has_its_own_rate() -> None:
    algorithm = Algorithm(num_iterations=2, num_minibatches=2)
    config = Config(
        learning_rate=8.0,
        max_steps=2,
        warmup_steps=2,
        lr_scheduler_type="linear",
        lr_scheduler_step="optimizer",
    )
    learner = TorchLearner(tiny_model(), algorithm=algorithm, config=config)
    groups = [group(i, 3, [4, 5], [1.0, 0.0]) for i in range(2)]
    rows = make_rows(
        groups,
        torch.tensor([[1.0, -1.0]] * 2).numpy(),
        loss_type="dapo",
        max_completion_length=8,
        mask_truncated=False,
        num_minibatches=2,
    )
    used: list[float] = []
    learner.optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    assert [learner.step(rows)["learning_rate"] for _ in range(2)] == pytest.approx([0, 32 / 6])
    assert used == pytest.approx([0, 4, 8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6])


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ({"lr_scheduler_kwargs": {"num_cycles": 1}}, "takes no arguments"),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 1}},
            "Did you mean 'num_cycles'",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs one of min_lr and min_lr_rate"),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
            "should be below the learning rate",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "1"}},
            r"num_cycles = '1': 0 or more",
        ),
        (
            {"lr_scheduler_step": "optimizer", "max_steps": 2, "warmup_steps": 7},
            r"more than the 4 optimizer steps of learner\.max_steps = 2",
        ),
    ],
)
def test_arguments_that_a_curve_does_not_take_are_refused(
    learner: dict[str, Any], message: str
) -> None:
    tree = recipes.resolved(recipes.load("parity-r1-zero"))
    tree["stages"][0]["learner"] = learner
    tree["stages"][0]["algorithm"]["num_iterations"] = 2
    with pytest.raises(RecipeError, match=message):
        recipes.from_dict(tree)
