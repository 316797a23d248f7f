"""LoRA, four-bit bases and small optimizer states on the card.

First suspicion: gradients fail, an adapter in another type or on another device than its base; the
saved one, the merge; four bits differ from the host's, bitsandbytes' kernels (its version is for
another CUDA: it says so when imported).
"""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.learner.learner import TorchLearner
from grpo.model.quantize import FourBitLinear, round_base
from grpo.outside.terminal.console import Console
from grpo.rollout.embedded.torch_engine import TorchEngine
from grpo.types import LoraSpec
from tests.gpu.learners import CPU, FLOAT32, distance, gradients, learner, long_groups, rows_of
from tests.grpo.rows import tiny_model
from tests.rollout.tiny_models import V0, Letters

RANK = 4


def needs(package: str) -> pytest.MarkDecorator:
    """Skipped where `package` is not installed."""
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


pytestmark = needs("peft")
four_bits = needs("bitsandbytes")


def small(dtype: torch.dtype = torch.float32) -> Any:
    shape = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}
    return tiny_model(dtype=dtype, initializer_range=0.1, **shape)


@torch.no_grad()
def randomized(made: TorchLearner) -> TorchLearner:
    """With an adapter that does something: B is 0 at first, and the gradient of A with it."""
    torch.manual_seed(3)
    for weight in made.trained.values():
        drawn = torch.randn(weight.shape, dtype=torch.float64) * 0.1
        weight.copy_(drawn)
    made._version = None
    return made


@pytest.mark.parametrize("share", [True, False])
def test_gradients_of_an_adapter(device: torch.device, share: bool) -> None:
    rows = rows_of(long_groups())
    found = []
    for where, dtype, shared in ((CPU, torch.float64, False), (device, torch.float32, share)):
        config = {"share_prompts": shared}
        made = randomized(learner(small(dtype), where, lora=LoraSpec(rank=RANK), config=config))
        made.step(rows)
        found.append(gradients(made))
    assert distance(found[1], found[0]) < FLOAT32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_saved_adapter_is_what_peft_reads(
    device: torch.device, tmp_path: Path, dtype: str
) -> None:
    """Merged and beside its base it gives the policy's logits, on the card and on the host."""
    from peft import PeftModel

    small().save_pretrained(tmp_path / "base")
    made = learner(str(tmp_path / "base"), device, lora=LoraSpec(rank=RANK), dtype=dtype)
    made.step(rows_of(long_groups()))
    made.step(rows_of(long_groups(1)))
    made.save(str(tmp_path / "saved"))
    # as the learner holds it: the base in the compute type, the adapter in float32
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=getattr(torch, dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, at peft
        peft = PeftModel.from_pretrained(base.float(), str(tmp_path / "saved" / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.arange(15)[None]
    with torch.no_grad():
        right = copy.deepcopy(peft).double()(ids).logits
        policy = made.model.float()(ids.to(device)).logits
        for name, model in (("peft", peft), ("merged", merged)):
            there = model.to(device)(ids.to(device)).logits
            assert distance(there, right) < FLOAT32, name
        assert distance(policy, right) < FLOAT32
    resumed = learner(str(tmp_path / "base"), device, lora=LoraSpec(rank=RANK), dtype=dtype)
    resumed.load(str(tmp_path / "saved"))
    assert resumed.version() == made.version()


def test_the_engine_takes_an_adapter(device: torch.device) -> None:
    made = randomized(learner(small(), device, lora=LoraSpec(rank=RANK)))
    engine = TorchEngine(
        small().to(device), Letters(), version=V0, lora=LoraSpec(rank=RANK), packed=False
    )
    before = engine.load_weights(made.weights(), made.version())
    assert before.version == made.version()
    assert before.canary == pytest.approx(made.canary(), abs=1e-3)
    made.step(rows_of(long_groups()))
    after = engine.load_weights(made.weights(), made.version())
    assert after.version == made.version() != before.version


@four_bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_four_bits_are_the_same_sixteen_values_here_and_there(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Packed bytes, scales and unpacked weights; and an engine's rounded copy is the learner's."""
    layer = small().to(dtype).model.layers[0].mlp.up_proj
    here, there = FourBitLinear(layer), FourBitLinear(copy.deepcopy(layer).to(device))
    same = (here.weight.data == there.weight.data.cpu()).double().mean()
    # a weight on the edge between two values may fall on either side: two of them are in a byte
    assert same > 0.999
    torch.testing.assert_close(there.scales.cpu(), here.scales, rtol=1e-6, atol=0)
    rounded = small().to(device, dtype)
    round_base(rounded)
    assert torch.equal(rounded.model.layers[0].mlp.up_proj.weight, there.values())
    x = torch.randn(5, layer.in_features).to(device, dtype).requires_grad_()
    out = there(x)
    out.sum().backward()
    weight = there.values().double().cpu()
    wanted = x.detach().double().cpu() @ weight.T
    bar = FLOAT32 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert distance(out.detach(), wanted) < bar
    assert x.grad is not None
    assert distance(x.grad, weight.sum(0).expand(5, -1)) < bar


@four_bits
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_four_bit_run_samples_and_scores_one_policy(
    device: torch.device, tmp_path: Path, dtype: str
) -> None:
    """An engine with the unrounded base would be off by 0.05 nats."""
    bar = 1e-4 if dtype == "float32" else 0.02
    settings = [
        *("model.lora.rank=4", "model.quantization=nf4", f"model.dtype={dtype}"),
        *("learner.max_steps=2", "agreement.steps=1", f"agreement.max_difference={bar}"),
        *("eval.num_tasks=8", "eval.num_samples=1", "rollout.prompts_per_step=2"),
        *("run.threads=1", "learner.learning_rate=1e-2", f"run.dir={tmp_path / 'run'}"),
    ]
    train_recipe(load("parity-r1-zero", settings), Console(quiet=True))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["grad_norm"] for line in lines) > 0


@four_bits
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"])
def test_small_states_learn_as_adamw_does_and_come_back(
    device: torch.device, tmp_path: Path, name: str
) -> None:
    rows = rows_of(long_groups())

    def make(optim: str) -> TorchLearner:
        return learner(small(), device, config={"learning_rate": 1e-3, "optim": optim})

    plain, other = make("adamw_torch"), make(name)
    start = {n: p.detach().clone() for n, p in plain.trained.items()}
    for _ in range(3):
        plain.step(rows)
        other.step(rows)
    moved = torch.cat([(plain.trained[n] - start[n]).flatten() for n in start])
    apart = torch.cat([(plain.trained[n] - other.trained[n]).flatten() for n in start])
    assert apart.norm() < 0.1 * moved.norm()
    other.save(str(tmp_path))
    resumed = make(name)
    resumed.load(str(tmp_path))
    assert resumed.step(rows)["loss"] == other.step(rows)["loss"]
    for parameter, twin in zip(other.trained.values(), resumed.trained.values(), strict=True):
        assert torch.equal(parameter, twin)
