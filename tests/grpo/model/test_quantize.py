"""Four-bit bases: a learner's packed layers and an engine's rounded ones hold the same numbers."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.config.config import load
from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.errors import RecipeError
from grpo.learner.learner import TorchLearner
from grpo.model.adapter import adapter_parameters, add_adapter, merged
from grpo.model.quantize import BLOCK, quantize_base, round_base
from grpo.types import LoraSpec
from tests.grpo.learner.test_learner import rows_of
from tests.grpo.rows import three_groups, tiny_model

BASE = Path(__file__).parents[3] / "recipes" / "assets" / "parity-base"

# Table 4 of the paper (appendix E), the sixteen values of NF4.
NF4 = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE).eval()


def test_a_missing_package_of_bitsandbytes_own_is_no_news_and_a_broken_one_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    said = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure"
    logger.warning(said, ModuleNotFoundError("No module named 'kernels'"))
    logger.warning(said, OSError("wrong ELF class"))
    (record,) = caplog.records
    assert "wrong ELF class" in record.getMessage()
    code = "import grpo, bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr


def test_rounded_weights_are_the_nearest_of_sixteen_values_in_their_block(model: Any) -> None:
    layer = model.model.layers[0].mlp.up_proj
    before = layer.weight.detach().clone().reshape(-1, BLOCK)
    round_base(model)
    after = layer.weight.detach().reshape(-1, BLOCK)
    scale = before.abs().amax(dim=1, keepdim=True)
    table = torch.tensor(NF4)
    nearest = table[(before[..., None] / scale[..., None] - table).abs().argmin(-1)] * scale
    off = (after - nearest).abs() > 1e-6
    # A tie may go either way; bitsandbytes compares with thresholds rounded to float32.
    assert off.float().mean() < 1e-4
    assert not torch.equal(before, after)


def test_packed_and_rounded_models_agree_bit_for_bit_and_spare_the_head(model: Any) -> None:
    packed, rounded = copy.deepcopy(model), copy.deepcopy(model)
    quantize_base(packed)
    round_base(rounded)
    ids = torch.arange(2, 10).reshape(2, 4) % 9
    with torch.no_grad():
        assert torch.equal(packed(ids).logits, rounded(ids).logits)
        assert not torch.equal(packed(ids).logits, model(ids).logits)
    assert torch.equal(rounded.lm_head.weight, model.lm_head.weight)
    assert packed.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    once = {name: p.detach().clone() for name, p in rounded.named_parameters()}
    round_base(rounded)  # what was rounded stays
    for name, parameter in rounded.named_parameters():
        torch.testing.assert_close(parameter, once[name], atol=1e-7, rtol=0)


def test_only_the_adapter_learns_and_merging_adds_it_to_the_rounded_base(model: Any) -> None:
    rounded = copy.deepcopy(model)
    round_base(rounded)
    quantize_base(model)
    torch.manual_seed(0)
    add_adapter(model, LoraSpec(rank=4))
    ids = torch.arange(2, 10).reshape(2, 4) % 9
    model(ids).logits.square().sum().backward()
    learned = adapter_parameters(model)
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    with torch.no_grad():
        for parameter in learned.values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    state = {name: make() for name, make in merged(model, lambda t: t)}
    assert set(state) >= {name for name, _ in rounded.named_parameters()}
    name = "model.layers.1.self_attn.q_proj"
    layer = model.get_submodule(name)
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * 2
    wanted = rounded.get_submodule(name).weight + delta
    torch.testing.assert_close(state[f"{name}.weight"], wanted)
    torch.testing.assert_close(layer.base_layer.values(), rounded.get_submodule(name).weight)
    rounded.load_state_dict(state, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(rounded(ids).logits, model(ids).logits, atol=2e-5, rtol=1e-5)


SHORT = ["eval.num_tasks=16", "eval.num_samples=1", "rollout.prompts_per_step=4", "run.threads=1"]


def test_qlora_samples_and_scores_one_policy(tmp_path: Path) -> None:
    from grpo.commands.train import train_recipe

    settings = [
        "model.lora.rank=4",
        "model.quantization=nf4",
        "learner.max_steps=2",
        "learner.learning_rate=1e-2",
        "agreement.steps=1",
        "agreement.max_difference=1e-4",  # an engine with the unrounded base is off by 0.05
        f"run.dir={tmp_path / 'run'}",
    ]
    train_recipe(load("parity-r1-zero", [*SHORT, *settings]))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["grad_norm"] for line in lines) > 0
    with pytest.raises(RecipeError, match=r"needs model\.lora\.rank"):
        load("parity-r1-zero", ["model.quantization=nf4"])


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_32bit"])
def test_small_states_learn_as_adamw_does_and_come_back_as_they_were(
    name: str, tmp_path: Path
) -> None:
    rows = rows_of(three_groups())

    def make(optim: str) -> TorchLearner:
        algorithm = Algorithm(sampling_correction="none")
        config = Config(learning_rate=1e-3, optim=optim)  # pyright: ignore[reportArgumentType]
        return TorchLearner(
            tiny_model(dtype=torch.float32, hidden_size=64, intermediate_size=128),
            algorithm=algorithm,
            config=config,
        )

    plain, small = make("adamw_torch"), make(name)
    start = {n: p.detach().clone() for n, p in plain.trained.items()}
    for _ in range(3):
        plain.step(rows)
        small.step(rows)
    moved = torch.cat([(plain.trained[n] - start[n]).flatten() for n in start])
    apart = torch.cat([(plain.trained[n] - small.trained[n]).flatten() for n in start])
    assert apart.norm() < 0.1 * moved.norm()
    small.save(str(tmp_path))
    other = make(name)
    other.load(str(tmp_path))
    assert other.step(rows)["loss"] == small.step(rows)["loss"]
    for parameter, twin in zip(small.trained.values(), other.trained.values(), strict=True):
        assert torch.equal(parameter, twin)
