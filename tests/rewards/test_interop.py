"""Rewards move both ways: ours in a real TRL step, TRL's in a RewardSet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grpo.rewards import REWARDS, RewardSet
from grpo.types import Completion, Prompt, Segment, Task, Version

from .scorers import SIZES, letters_tokenizer, save_scorer

# What rewards that need arguments are given, and a row with every column that one needs.
ARGS = {
    "gate": {"reward": "format"},
    "length_cosine": {"max_length": 8},
    "soft_overlong": {"max_length": 8, "cache": 4},
    "routed": {"routes": {"sums": {"name": "accuracy"}}, "default": "sums"},
}
ROWS = {
    "prompt": ["1 + 1 = ?", "2 + 2 = ?"],
    "answer": ["2", "4"],
    "numbers": [[1, 1], [2, 2]],
    "target": [2, 4],
    "metadata": ['{"source_dataset": "countdown", "numbers": [1, 1], "target": 2}'] * 2,
    "tests": ['{"asserts": ["assert f(1) == 2"]}'] * 2,
    "roles": [{"Ann": "knight"}] * 2,
}


@pytest.fixture(scope="module")
def tokenizer():
    return letters_tokenizer()


@pytest.mark.filterwarnings("ignore")
def test_every_builtin_is_a_trl_reward_in_a_real_training_step(tokenizer, tmp_path):
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=64,
            **SIZES,
        )
    )
    elsewhere = ("reward_model", "judge")  # they need a model, or an endpoint: tested below
    functions = [
        factory(**ARGS.get(name, {})) for name, factory in REWARDS.items() if name not in elsewhere
    ]
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=functions,
        train_dataset=Dataset.from_dict(ROWS),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            max_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
        ),
    )
    trainer.train()
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    for function in functions:
        mean = logged[f"rewards/{function.__name__}/mean"]
        if function.__name__ == "language_consistency":
            assert mean is None or np.isfinite(mean)  # eight random letters may be no word
        else:
            assert np.isfinite(mean)
    for function in functions:
        close = getattr(function, "close", None)
        if close is not None:
            close()


def test_trl_rewards_run_here():
    from trl.rewards import accuracy_reward, get_soft_overlong_punishment, think_format_reward

    segment = Segment(
        ids=np.arange(6), version=Version(step=0, hash=""), logprobs=np.zeros(6, np.float32)
    )
    texts = ["<think>a</think>\\boxed{4}", "<think>a</think>\\boxed{5}"]
    completions = [
        Completion(request="r", index=i, segments=(segment,), text=text, finish="stop")
        for i, text in enumerate(texts)
    ]
    messages = [{"role": "user", "content": "2 + 2?"}]
    task = Task(uid="t", prompt=messages, columns={"solution": "$4$"})
    rewards = RewardSet(
        [
            ("accuracy", accuracy_reward, 1.0),
            ("think", think_format_reward, 0.5),
            ("overlong", get_soft_overlong_punishment(8, 4), 1.0),
        ]
    )
    scores = rewards.score(Prompt(task=task, text="", ids=(1,)), completions)
    assert [s.parts for s in scores] == [
        {"accuracy": 1.0, "think": 1.0, "overlong": -0.5},
        {"accuracy": 0.0, "think": 1.0, "overlong": -0.5},
    ]
    assert [s.value for s in scores] == [1.0, 0.0]


@pytest.mark.filterwarnings("ignore")
def test_a_reward_model_gives_its_first_logit(tokenizer, tmp_path):
    model = save_scorer(tmp_path, tokenizer)
    texts = ["1 + 1 = 2", "1 + 1 = 3 no", "a"]
    expected = [
        model(torch.tensor([tokenizer("q" + text)["input_ids"]])).logits[0, 0].item()
        for text in texts
    ]
    reward = REWARDS["reward_model"](str(tmp_path), batch_size=2, scale=2.0, offset=1.0)
    got = reward(prompts=["q"] * 3, completions=texts)
    assert got == pytest.approx([2 * e + 1 for e in expected], abs=1e-5)
