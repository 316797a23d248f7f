"""What fields of TRL's become where the conversion is more than a copy."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.config import config as recipes
from grpo.config.trl.convert import Facts, convert, to_recipe
from grpo.config.trl.settings import GRPOConfig
from grpo.errors import RecipeError
from tests.grpo.config.trl.test_fields import ALLOWING, CONTEXT, FIELDS, other

WHOLE = {
    "name": "mine",
    "model": {"path": "org/model"},
    "data": {"source": "arithmetic", "template": "chat"},
}
FACTS = Facts(num_rows=96, num_rewards=2, num_eval_rows=40, longest_prompt=300)


def tree(**fields: Any) -> dict[str, Any]:
    """The sections, with model, rows and rewards as a caller adds them."""
    made = convert(GRPOConfig(**fields), FACTS)
    assert not made.refused
    found = {**WHOLE, **made.tree}
    for section in ("model", "data"):
        found[section] = {**WHOLE[section], **made.tree.get(section, {})}
    named = [{"name": "accuracy"}, {"name": "format"}]
    weighed = made.tree.get("rewards", [{}, {}])
    found["rewards"] = [{**a, **b} for a, b in zip(named, weighed, strict=True)]
    return found


@pytest.mark.parametrize(
    "name", [n for n, f in FIELDS.items() if f.fate == "honored" and n not in ALLOWING]
)
def test_every_field_makes_a_recipe_that_is_valid(name: str) -> None:
    found = tree(**CONTEXT.get(name, {}), **{name: other(name)})
    recipes.from_dict(found)


def test_advantage_and_loss_are_trls() -> None:
    def algorithm(**fields: Any) -> tuple[Any, ...]:
        made = tree(**fields)["algorithm"]
        names = ("advantage", "loss_type", "epsilon_high", "loss_args")
        return tuple(made.get(name) for name in names)

    assert algorithm() == ("grpo", "dapo", None, {})
    assert algorithm(loss_type="cispo") == ("grpo", "cispo", 0.2, {})  # TRL clips at epsilon then
    assert algorithm(loss_type="cispo", epsilon_high=5.0)[2] == 5.0
    assert algorithm(loss_type="dr_grpo", scale_rewards=False)[:2] == ("dr_grpo", "dr_grpo")
    assert algorithm(loss_type="bnpo")[1] == "dapo"  # one micro-batch is the step
    level = {"importance_sampling_level": "sequence"}
    assert algorithm(loss_type="grpo", **level)[3] == level
    assert algorithm(loss_type="luspo", **level)[3] == {}  # its own level
    assert algorithm(loss_type="sapo", delta=2.0, epsilon_high=0.3)[2] is None
    assert algorithm(scale_rewards="batch", multi_objective_aggregation="normalize_then_sum")[
        0
    ] == ("gdpo")
    constants = {"entropy_coef": 0.01, "top_entropy_quantile": 0.2, "off_policy_mask_threshold": 1}
    assert algorithm(**constants)[3] == constants


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        ({"loss_type": "bnpo", "gradient_accumulation_steps": 2}, "loss_type", "use dapo"),
        ({"loss_type": "gspo"}, "loss_type", "importance_sampling_level='sequence'"),
        ({"loss_type": "ppo"}, "loss_type", "valid: grpo, dr_grpo"),
        ({"loss_type": "luspo"}, "loss_type", "its own"),
        (
            {"loss_type": "vespo", "importance_sampling_level": "sequence"},
            "importance_sampling_level",
            "leave it out",
        ),
        ({"sync_ref_model": True, "beta": 0.1}, "ref_model_mixup_alpha", "set it to 1.0"),
        (
            {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0},
            "sync_ref_model",
            "set beta above 0",
        ),
        (
            {
                "sync_ref_model": True,
                "ref_model_mixup_alpha": 1.0,
                "beta": 0.1,
                "num_iterations": 3,
            },
            "ref_model_sync_steps",
            "has 3, so use a multiple",
        ),
        ({"run_name": "my run"}, "run_name", "letters, digits"),
        ({"report_to": "all"}, "report_to", "valid: tensorboard, wandb, trackio"),
        ({"report_to": ["wandb", "mlflow"]}, "report_to", "no tracker 'mlflow'"),
        ({"optim": "adafactor"}, "optim", "valid: adamw_torch"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type", "valid: constant"),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "model_init_kwargs", "set bf16=True"),
        ({"model_init_kwargs": {"revision": "x"}}, "model_init_kwargs", "give the object"),
        ({"eval_strategy": "best"}, "eval_strategy", "valid: no, steps, epoch"),
        ({"save_strategy": "best"}, "save_strategy", "eval.keep_best"),
        ({"reward_weights": [1.0]}, "reward_weights", "1 weights for 2 rewards"),
        ({"warmup_steps": 500}, "warmup_steps", "the run has 288 optimizer steps"),
        ({"use_vllm": True, "vllm_mode": "remote"}, "vllm_mode", "colocate, server"),
        ({"fp16": True, "bf16": True}, "fp16", "bf16 is set too"),
        ({"scale_rewards": "max"}, "scale_rewards", "valid: group, batch, none"),
    ],
)
def test_what_cannot_be_kept_is_refused(fields: Any, name: str, message: str) -> None:
    refused = convert(GRPOConfig(**fields), FACTS).refused
    assert list(refused) == [name]
    assert message in refused[name]


def test_steps_are_counted_in_rollout_batches() -> None:
    three = {"num_iterations": 3, "max_steps": 300}
    made = convert(GRPOConfig(**three, save_steps=100, eval_strategy="steps", eval_steps=30), FACTS)
    assert made.tree["run"]["save_steps"] == 34
    assert made.tree["eval"]["steps"] == 10
    assert [note for note in made.notes if "every 34 batches" in note]
    assert not [note for note in made.notes if note.startswith("eval_steps")]
    shares = convert(GRPOConfig(**three, save_steps=0.1, save_strategy="steps"), FACTS)
    assert shares.tree["run"]["save_steps"] == 10
    epochs = convert(GRPOConfig(save_strategy="epoch", eval_strategy="epoch"), FACTS)
    assert (epochs.tree["run"]["save_steps"], epochs.tree["eval"]["steps"]) == (96, 96)


def test_nothing_is_evaluated_unless_asked() -> None:
    assert convert(GRPOConfig(), FACTS).tree["eval"] == {"num_tasks": 0}
    asked = GRPOConfig(eval_strategy="steps", temperature=0.7, num_generations_eval=1, top_p=0.5)
    made = convert(asked, FACTS)
    assert made.tree["eval"] == {
        "num_tasks": 40,
        "num_samples": 1,
        "temperature": 0.7,
        "steps": 10,  # logging_steps
        "before": False,
    }
    assert [note for note in made.notes if note.startswith("top_p = 0.5")]
    started = convert(GRPOConfig(eval_on_start=True), FACTS).tree["eval"]
    assert (started["before"], started["steps"]) == (True, 0)
    without = Facts(num_rows=96, num_rewards=2)
    refused = convert(GRPOConfig(eval_strategy="epoch"), without).refused
    assert "give eval_dataset" in refused["eval_strategy"]


def test_types_of_numbers() -> None:
    def dtype(**fields: Any) -> str:
        return tree(**fields)["model"]["dtype"]

    assert dtype() == "auto"
    assert dtype(bf16=True) == "bfloat16"
    assert dtype(bf16=False) == "float32"
    assert dtype(bf16=False, use_cpu=True) == "float32"
    assert dtype(use_cpu=True) == "bfloat16"  # TRL's own default there
    assert dtype(fp16=True) == "float16"


def test_prompts_are_neither_cut_nor_dropped() -> None:
    made = tree(max_completion_length=20_000, chat_template_kwargs={"enable_thinking": False})
    assert made["data"]["overlong"] == "error"
    assert made["data"]["max_prompt_length"] == 300
    assert made["data"]["template_args"] == {"chat_template_kwargs": {"enable_thinking": False}}
    assert made["learner"]["tokens_per_micro_batch"] == 20_300


def test_the_sampler_is_corrected_with_vllm_alone() -> None:
    def correction(**fields: Any) -> tuple[Any, ...]:
        made = tree(**fields)["algorithm"]
        return made["sampling_correction"], made.get("sampling_correction_cap")

    assert correction() == ("none", None)
    assert correction(use_vllm=True) == ("sequence_mask", 3.0)
    assert correction(use_vllm=True, vllm_importance_sampling_correction=False)[0] == "none"
    server = tree(use_vllm=True, vllm_mode="server", vllm_server_port=8001)["rollout"]
    assert server["engine"] == "server"
    assert server["engine_args"] == {"url": "http://127.0.0.1:8001", "wait": 240.0}


def test_what_differs_is_noted() -> None:
    dealt = GRPOConfig(
        num_generations=2, gradient_accumulation_steps=1, steps_per_generation=2, max_steps=60
    )
    _, notes = to_recipe(dealt, num_rows=43, num_rewards=1)
    assert len(notes) == 2
    assert "2 optimizer steps in a pass: whole groups" in notes[0]
    assert "leaves the last 3 rows of each epoch out" in notes[1]
    _, notes = to_recipe(GRPOConfig(delta=2.0, loss_type="sapo"), num_rows=9, num_rewards=1)
    assert notes == ["delta = 2.0: changes nothing, as loss_type='sapo' does not use it"]


def test_a_length_or_a_period_that_is_not_used_is_noted() -> None:
    config = GRPOConfig(max_steps=7, num_train_epochs=2, logging_steps=3)
    _, notes = to_recipe(config, num_rows=9, num_rewards=1)
    assert notes == [
        "num_train_epochs = 2: max_steps says how long the run is",
        "logging_steps = 3: metrics.jsonl has every step",
    ]


def test_refusals_are_one_error() -> None:
    config = GRPOConfig(repetition_penalty=1.1, deepspeed="a.json")
    with pytest.raises(RecipeError, match=r"deepspeed = 'a\.json'.*; repetition_penalty = 1\.1"):
        to_recipe(config, num_rows=9, num_rewards=1)
