"""How often, on how many prompts and with which rates a run of TRL's own trainer learns.

`GRPOTrainer` trains a tiny model for real; a recipe made of the same config has the same numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from grpo.config.schema import Learner
from grpo.config.trl.batches import batches_of
from grpo.config.trl.convert import to_recipe
from grpo.config.trl.settings import GRPOConfig
from grpo.errors import RecipeError
from grpo.learner.optimizers import learning_rate
from tests.grpo.rows import V, tiny_model

trl = pytest.importorskip("trl")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # TRL's and its dependencies' own, none of them ours
]
ROWS = 10
LETTERS = [chr(ord("a") + i) for i in range(V - 3)]


def theirs(folder: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """What TRL's trainer does with the fields: prompts of each generation, rates, dispatch."""
    from datasets import Dataset

    vocabulary = {t: i for i, t in enumerate(["<pad>", "<bos>", "<eos>", *LETTERS])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )
    generations: list[list[str]] = []

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        generations.append(list(prompts))
        return [float(len(text) + i) for i, text in enumerate(completions)]

    trainer = trl.GRPOTrainer(
        model=tiny_model(dtype=torch.float32, pad_token_id=0),
        reward_funcs=reward,
        args=trl.GRPOConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            disable_tqdm=True,
            max_completion_length=2,
            **fields,
        ),
        train_dataset=Dataset.from_dict({"prompt": LETTERS[:ROWS]}),
        processing_class=tokenizer,
    )
    rates: list[float] = []
    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    trainer.train()
    return {"generations": generations, "rates": rates, "steps": trainer.state.global_step}


@pytest.mark.parametrize(
    ("fields", "by_hand"),
    [
        # 8 completions of 2 make batches of 4 prompts; 2 whole ones of 10 rows, 3 epochs
        ({"num_generations": 2}, (4, 6, 6)),
        # accumulation: 3 micro-steps of 4 completions, 6 prompts, one batch an epoch
        (
            {
                "num_generations": 2,
                "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 3,
                "num_train_epochs": 2.0,
                "lr_scheduler_type": "cosine",
                "warmup_steps": 0.5,
            },
            (6, 2, 2),
        ),
        # twice as many micro-steps as are accumulated, gone through twice: 4 optimizer steps
        (
            {
                "num_generations": 2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "steps_per_generation": 4,
                "num_iterations": 2,
                "max_steps": 12,
                "warmup_steps": 3,
            },
            (4, 12, 3),
        ),
        # the generation batch in completions; epochs in optimizer steps of 3 passes
        (
            {
                "num_generations": 4,
                "per_device_train_batch_size": 4,
                "generation_batch_size": 8,
                "num_iterations": 3,
                "num_train_epochs": 1.0,
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 4,
            },
            (2, 30, 5),
        ),
    ],
)
def test_a_run_has_trls_batches_steps_and_rates(
    fields: dict[str, Any], by_hand: tuple[int, int, int], tmp_path: Any
) -> None:
    config = GRPOConfig(learning_rate=1e-3, **fields)
    batches = batches_of(config, num_rows=ROWS)
    assert (batches.prompts, batches.optimizer_steps, batches.rollout_steps) == by_hand
    tree, _ = to_recipe(config, num_rows=ROWS, num_rewards=1)
    learner = Learner(**tree["learner"] | {"adam_betas": tuple(tree["learner"]["adam_betas"])})
    ours = [
        learning_rate(learner, batch, update, batches.updates)
        for batch in range(learner.max_steps)
        for update in range(batches.updates)
    ]

    found = theirs(tmp_path, {"learning_rate": 1e-3, **fields})
    assert found["steps"] == batches.optimizer_steps
    assert ours == pytest.approx(found["rates"], rel=1e-9, abs=1e-15)
    assert len(found["generations"]) == tree["learner"]["max_steps"]
    group, prompts = config.num_generations, tree["rollout"]["prompts_per_step"]
    for asked in found["generations"]:
        assert len(asked) == group * prompts
        assert len(set(asked)) == prompts


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"generation_batch_size": 8, "steps_per_generation": 2}, "say the same twice"),
        ({"generation_batch_size": 12}, "multiple of the 8 completions"),
        ({"num_generations": 3}, "valid: 2, 4, 8"),
        ({"num_generations": 1}, "2 or more"),
        (
            {"num_generations": 2, "steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "within an optimizer step.*multiple: 2, 4",
        ),
        ({"num_generations": 8, "steps_per_generation": 2}, None),
        ({"num_generations": 16, "steps_per_generation": 2}, "whole groups are dealt out"),
        ({"num_iterations": 3, "max_steps": 10}, "set max_steps to 9 or 12"),
        ({"num_generations": 2, "per_device_train_batch_size": 32}, "TRL would train no step"),
        ({"num_iterations": 0}, "1 or more"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(fields: dict[str, Any], error: str | None) -> None:
    config = GRPOConfig(**{"max_steps": 6, **fields})
    if error is None:
        assert batches_of(config, num_rows=ROWS).updates == 2
        return
    with pytest.raises(RecipeError, match=error):
        batches_of(config, num_rows=ROWS)


def test_rows_need_not_be_known_where_steps_are_counted() -> None:
    assert batches_of(GRPOConfig(max_steps=7), num_rows=None).rollout_steps == 7
    with pytest.raises(RecipeError, match=r"num_train_epochs = 3\.0 needs the number of rows"):
        batches_of(GRPOConfig(), num_rows=None)
    two = batches_of(GRPOConfig(num_generations=4), num_rows=ROWS, num_processes=2)
    assert (two.prompts, two.rollout_steps) == (4, 6)  # 2 ranks of 8 completions; 2 batches, thrice
