"""The recipes of same_bytes.py: small stages that go through as much of the code as they can.

They use only settings whose names have been the same for long, since two states of the code read
them.
"""

from __future__ import annotations

from typing import Any

from record import ROOT

ASSETS = ROOT / "recipes" / "assets"  # one input for both states of the code

# Every loss with its own arguments, and beside it an advantage: a test finds what is missing here.
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "dr_grpo": {"delta": 1.5},
    "dapo": {"epsilon_high": 0.28},
    "bnpo": {"beta": 0.05},
    "gspo": {"epsilon": 0.01},
    "luspo": {"epsilon": 0.01},
    "cispo": {"epsilon_high": 5.0},
    "sapo": {"loss_args": {"sapo_temperature_neg": 1.1}},
    "vespo": {},
}
ADVANTAGES: tuple[dict[str, Any], ...] = (
    {"advantage": "grpo"},
    {"advantage": "dr_grpo"},
    {"advantage": "rloo"},
    {"advantage": "batch"},
    {"advantage": "reinforce_plus_plus_baseline"},
    {"advantage": "maxrl"},
    {"advantage": "pass@k", "advantage_args": {"k": 2}},
    {"advantage": "pass@k", "advantage_args": {"k": 4}},
    {"advantage": "pass@k", "advantage_args": {"k": 8}},
    {"advantage": "none"},
    {"advantage": "gdpo"},
)
TABLE = "grpo/method/table.py"  # commits without this file know other names of advantages
LORA = "grpo/stages/adapters.py"  # commits without it have model.lora_rank
PARITY: dict[str, Any] = {
    "source": "parity",
    "args": {"bits": 16},
    "template": "raw",
    "max_prompt_length": 32,
}
REWARDS = [{"name": "accuracy"}, {"name": "format"}]

# What the stages of the pipeline share.
ROWS = str(ASSETS / "mini-r1-cold-start.jsonl")
SAMPLED: dict[str, Any] = {
    "data": {
        "source": "bilingual",
        "args": {"bits": 12},
        "template": "raw",
        "max_prompt_length": 16,
    },
    "rollout": {
        "prompts_per_step": 16,
        "num_generations": 4,
        "max_completion_length": 20,
        "temperature": 1.5,
    },
    "rewards": [{"name": "accuracy"}],
    "filter": {"num_tasks": 16, "language": "en", "max_repetition": 0.9},
}
TUNED = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-3, "max_length": 64}
FEW = {"num_tasks": 4, "num_samples": 2}


def pipeline() -> list[dict[str, Any]]:
    """A small recipe with every kind of stage, an adapter, packed rows and a mix of rows."""
    size = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    corpus = {"source": "bilingual", "args": {"bits": 12, "long_fraction": 0.5}}
    first = {"kind": "pretrain", "name": "base", "model": {**size, "max_position": 64}}
    base = {"path": "stage:base"}
    rl = {key: SAMPLED[key] for key in ("data", "rollout")} | {"rewards": REWARDS}
    asked: dict[str, Any] = {"data": SAMPLED["data"], "rewards": REWARDS}
    taught = {"teacher": {"path": "stage:rl"}, "model": base, **SAMPLED, "learner": TUNED}
    return [
        {**first, "data": corpus, "learner": {"max_steps": 10, "batch_size": 32}},
        {"kind": "sft", "name": "cold", "model": base, "data": {"path": ROWS}, "learner": TUNED},
        {
            "kind": "rl",
            "name": "rl",
            "model": {"path": str(ASSETS / "mini-r1")},
            **rl,
            "learner": {"max_steps": 2, "learning_rate": 1e-3},
            "eval": FEW,
        },
        {"kind": "reject", "name": "kept", "model": {"path": "stage:rl"}, **SAMPLED},
        {
            "kind": "sft",
            "name": "again",
            "model": {**base, "lora": {"rank": 4}},
            "data": {"path": "stage:kept", "mix": {ROWS: 0.3}},
            "learner": {**TUNED, "packing": True},
        },
        {"kind": "distill", "name": "by_sequence", **taught, "method": "sequence"},
        {"kind": "distill", "name": "by_logits", **taught, "method": "logits"},
        {
            "kind": "eval",
            "name": "table",
            "models": ["stage:base", "stage:rl", "stage:again", "stage:by_logits"],
            **asked,
            "max_completion_length": 20,
            **FEW,
        },
    ]


def rl_stage(name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """One rollout batch in two optimizer steps on the shipped base.

    AdamW's first step is about the gradient's sign; the second one sees its size, and ratios that
    are not 1.
    """
    stage: dict[str, Any] = {
        "model": {"path": str(ASSETS / "parity-base")},
        "data": PARITY,
        "rollout": {"prompts_per_step": 4, "num_generations": 9, "max_completion_length": 24},
        "algorithm": {"num_minibatches": 2},
        "learner": {"max_steps": 1, "learning_rate": 1e-3, "tokens_per_micro_batch": 512},
        "eval": {"num_tasks": 1, "num_samples": 1},
    }
    merged = {key: {**stage.get(key, {}), **value} for key, value in sections.items()}
    return {"kind": "rl", "name": name, "rewards": REWARDS, **stage, **merged}


def losses() -> list[dict[str, Any]]:
    """A stage for every loss and every advantage, in pairs; the last ones come with dapo."""
    rest = ["dapo"] * (len(ADVANTAGES) - len(LOSSES))
    return [
        rl_stage(
            "_".join([loss, advantage["advantage"].replace("@", ""), str(number)]),
            algorithm={"loss_type": loss, **advantage, **LOSSES[loss]},
        )
        for number, (advantage, loss) in enumerate(
            zip(ADVANTAGES, [*LOSSES, *rest], strict=True), start=1
        )
    ]


def without_gdpo(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The stages that a commit without TABLE has too; there GDPO was a reward."""
    return [stage for stage in stages if stage.get("algorithm", {}).get("advantage") != "gdpo"]


def older(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same stages as a commit without TABLE spells them: pass@4 for pass@k with k = 4."""
    return [
        {**stage, "algorithm": {**rest, "advantage": f"pass@{args['k']}"}}
        if (rest := dict(stage.get("algorithm", {}))) and (args := rest.pop("advantage_args", None))
        else stage
        for stage in stages
    ]


def with_rank(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same stages as a commit without LORA spells them: model.lora_rank for model.lora."""
    return [
        {**stage, "model": {**rest, "lora_rank": lora["rank"]}}
        if (rest := dict(stage.get("model", {}))) and (lora := rest.pop("lora", None))
        else stage
        for stage in stages
    ]


def settings() -> list[dict[str, Any]]:
    """A stage for each setting that takes another way through the code."""
    two: dict[str, Any] = {"max_steps": 2}
    return [
        rl_stage("adapter", model={"lora": {"rank": 4}}),
        rl_stage("bfloat16", model={"dtype": "bfloat16"}),
        rl_stage("engine_bfloat16", rollout={"dtype": "bfloat16"}),
        rl_stage("prompts_apart", learner={"share_prompts": False}),
        rl_stage("recomputed", learner={"gradient_checkpointing": True, "weight_decay": 0.01}),
        rl_stage("one_step_off", schedule={"mode": "one_step_off"}, learner=two),
        rl_stage(
            "reference",
            algorithm={"beta": 0.05, "ref_model_sync_steps": 1, "num_iterations": 2},
            learner={**two, "lr_scheduler_type": "cosine"},
        ),
        rl_stage(
            "entropy",
            algorithm={"loss_args": {"top_entropy_quantile": 0.5, "entropy_coef": 0.01}},
        ),
        rl_stage(
            "filtered",
            rollout={
                "top_p": 0.9,
                "top_k": 5,
                "min_p": 0.01,
                "temperature": 1.2,
                "stop": ["odd odd"],
            },
            algorithm={"sampling_correction": "sequence_mask", "mask_truncated_completions": True},
        ),
        rl_stage("more_rounds", rollout={"oversample": 1.5, "max_rounds": 2}, learner=two),
    ]
