"""One seed, one model: on two threads, as users have them, and not on one alone."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from grpo.commands.train import prepare_process, train_recipe
from grpo.config.config import from_dict
from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner.learner import TorchLearner
from grpo.method.table import OBJECTIVES
from grpo.types import Row
from tests.grpo.rows import V, tiny_model

TWO = 2
TIMES = 12
WIDTH = 96  # 1,500 tokens of this width are more than PyTorch keeps on one thread


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """Process-wide settings as a run leaves them, put back afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = deterministic.fill_uninitialized_memory
    torch.set_num_threads(TWO)
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])
    deterministic.fill_uninitialized_memory = filled


def many_rows(groups: int = 6, size: int = 8) -> list[Row]:
    """Groups whose completions share a prompt, so that its last token predicts `size` tokens."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for group in range(groups):
        prompt = tuple(rng.integers(3, V, 17).tolist())
        for _ in range(size):
            length = int(rng.integers(20, 40))
            advantage = float(rng.normal())
            rows.append(
                Row(
                    group=group,
                    prompt_ids=prompt,
                    ids=rng.integers(3, V, length),
                    mask=np.ones(length, dtype=np.bool_),
                    columns={
                        "logp_sampler": rng.uniform(-4, -1, length).astype(np.float32),
                        "advantages": np.full(length, advantage, dtype=np.float32),
                        "weights": np.full(length, 1 / 1000, dtype=np.float32),
                    },
                )
            )
    return rows


def learner(model: Any, share: bool = True, **algorithm: Any) -> TorchLearner:
    config = Config(learning_rate=1e-3, tokens_per_micro_batch=16384, share_prompts=share)
    return TorchLearner(model, algorithm=Algorithm(**algorithm), config=config)


def gradients(learner: TorchLearner, rows: list[Row]) -> str:
    """A hash of every gradient of one micro-batch."""
    learner.optimizer.zero_grad(set_to_none=True)
    (prepared,) = learner._prepare(rows, recompute=False)
    learner.loss(prepared)[0].backward()
    digest = hashlib.sha256()
    for parameter in learner.model.parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            digest.update(gradient.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Unordered(TorchDispatchMode):
    """Counts operations whose threads add to one number in any order (as of torch 2.13)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        adds = "index_put" in name and len(args) > 3 and args[3]
        if adds or name.removesuffix("_") in ("aten::index_add", "aten::scatter_reduce"):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def wide(dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    return tiny_model(dtype=dtype, hidden_size=WIDTH, **sizes)


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_gradient_has_the_same_bits_every_time(
    layout: str, kernels: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setenv("GRPO_NATIVE", "0")
    monkeypatch.setattr("grpo.learner.packing.SHARE_ABOVE", -1.0 if layout == "shared" else 1e9)
    made = learner(wide(), share=layout != "padded", loss_args={"importance_sampling_level": level})
    rows = many_rows()
    assert len({gradients(made, rows) for _ in range(TIMES)}) == 1


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_no_operation_of_the_learner_adds_up_in_the_order_of_threads(loss_type: str) -> None:
    extra = {"epsilon_high": 5.0} if loss_type == "cispo" else {}
    correction = "token_truncate" if loss_type == "vespo" else "sequence_truncate"
    made = learner(
        wide(),
        loss_type=loss_type,
        beta=0.1,
        loss_args={"off_policy_mask_threshold": 1.0, "entropy_coef": 0.01},
        sampling_correction=correction,
        **extra,
    )
    rows = many_rows(groups=3)
    with Unordered() as seen:
        gradients(made, rows)
    assert not seen.found


def test_the_audit_sees_what_it_is_for() -> None:
    values = torch.randn(8, 4, requires_grad=True)
    with Unordered() as seen:
        values[torch.tensor([1, 1, 2])].sum().backward()
    assert sum(seen.found.values()) == 1


def test_experts_of_a_model_are_added_up_in_one_order_too() -> None:
    """The model's own code reads a token once an expert; a run has PyTorch add that up in order."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=V,
        hidden_size=WIDTH,
        intermediate_size=64,
        moe_intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=3,
        decoder_sparse_step=1,
        eos_token_id=2,
        pad_token_id=2,
        bos_token_id=1,
    )
    model = Qwen3MoeForCausalLM(config)
    prepare_process(TWO)
    made, rows = learner(model), many_rows()
    with Unordered() as seen:
        gradients(made, rows)
    assert seen.found  # else this test has nothing to show
    assert torch.are_deterministic_algorithms_enabled()
    assert len({gradients(made, rows) for _ in range(TIMES)}) == 1


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_two_runs_of_every_kind_of_learning_end_in_one_model(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            f'{{"prompt": "{n:04b}=", "completion": "<think>{n & 1}</think><answer>1</answer>"}}'
            for n in range(16)
        )
        + "\n"
    )
    found: list[list[str]] = []
    for turn in range(2):
        folder = tmp_path / f"run{turn}"
        data = {"source": "parity", "args": {"bits": 4}, "template": "raw"}
        stages: list[dict[str, Any]] = [
            {
                "name": "base",
                "kind": "pretrain",
                "data": {"source": "parity", "args": {"bits": 4, "long_fraction": 0.5}},
                "model": {
                    "hidden_size": 64,
                    "num_layers": 1,
                    "num_heads": 2,
                    "intermediate_size": 128,
                },
                "learner": {
                    "max_steps": 8,
                    "batch_size": 128,
                    "learning_rate": 3e-3,
                    "warmup_steps": 0,
                },
            },
            {
                "name": "cold",
                "kind": "sft",
                "model": {"path": "stage:base"},
                "data": {"path": str(rows), "template": "raw"},
                "learner": {"max_steps": 3},
            },
            {
                "name": "rl",
                "kind": "rl",
                "model": {"path": "stage:cold"},
                "data": {**data, "max_prompt_length": 16},
                "rollout": {
                    "prompts_per_step": 32,
                    "num_generations": 8,
                    "max_completion_length": 24,
                },
                "rewards": [{"name": "accuracy"}, {"name": "random"}],
                "algorithm": {"beta": 0.01},
                "learner": {"max_steps": 3, "learning_rate": 1e-3},
                "eval": {"num_tasks": 2, "num_samples": 1},
                "agreement": {"steps": 0},
            },
        ]
        train_recipe(
            from_dict(
                {
                    "name": "bits",
                    "run": {"dir": str(folder), "threads": TWO, "seed": 7, "save_steps": 0},
                    "stages": stages,
                }
            )
        )
        found.append([weights(folder / name / "model") for name in ("base", "cold", "rl")])
    assert found[0] == found[1]
    assert len(set(found[0])) == 3  # each stage learned something
