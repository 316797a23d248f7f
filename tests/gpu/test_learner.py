"""The learner on the card: the same bits twice, state that comes back, and what steps do.

First suspicion: two runs differ, an operation that adds up by atomics (the last test here has torch
name it; docs/checks.md promises the same bits for a CPU only); resume differs alone, a part of the
state that is not saved; the scaler, the unscaling of a gradient that overflowed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.learner.learner import TorchLearner
from grpo.types import Row
from tests.gpu.learners import CPU, FLOAT32, distance, gradients, learner, long_groups, rows_of
from tests.grpo.rows import tiny_model

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
TYPES = ["float32", "bfloat16", "float16"]


def small(dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any) -> Any:
    return tiny_model(seed=seed, dtype=dtype, **{**SHAPE, **settings})


def batches(count: int, **settings: Any) -> list[list[Row]]:
    return [rows_of(long_groups(seed), **settings) for seed in range(count)]


def trained(
    device: torch.device, dtype: str, steps: int, **settings: Any
) -> tuple[TorchLearner, list[dict[str, float]]]:
    config = {"tokens_per_micro_batch": 500, "weight_decay": 0.1, "max_grad_norm": 0.5}
    made = learner(
        small(), device, dtype=dtype, config=config | settings.pop("config", {}), **settings
    )
    return made, [made.step(rows) for rows in batches(steps)]


def differing(one: TorchLearner, other: TorchLearner) -> list[str]:
    """Names of the weights that differ in a bit."""
    pairs = zip(one.trained.items(), other.trained.values(), strict=True)
    return [name for (name, a), b in pairs if not torch.equal(a, b)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("tied", "share"), [(True, True), (False, True), (True, False)])
def test_three_steps_twice_give_the_same_bits(
    device: torch.device, dtype: str, tied: bool, share: bool
) -> None:
    found = []
    for _ in range(2):
        config = {"tokens_per_micro_batch": 500, "share_prompts": share, "weight_decay": 0.1}
        model = small(tie_word_embeddings=tied)
        made = learner(model, device, dtype=dtype, config=config, algorithm={"beta": 0.05})
        for rows in batches(3):
            made.step(rows)
        found.append(made)
    assert differing(*found) == []
    assert found[0].version() == found[1].version()


@pytest.mark.parametrize("dtype", TYPES)
def test_resume_is_bit_identical(device: torch.device, tmp_path: Path, dtype: str) -> None:
    """The whole state comes back, and two more steps go the same way.

    Where steps are not the same twice (above), only the part after the load fails.
    """
    settings = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": 6}
    algorithm = {"beta": 0.05, "ref_model_sync_steps": 2}
    whole, _ = trained(device, dtype, 3, config=settings, algorithm=algorithm)
    whole.save(str(tmp_path / "saved"))
    resumed, _ = trained(device, dtype, 0, config=settings, algorithm=algorithm)
    resumed.load(str(tmp_path / "saved"))
    assert differing(whole, resumed) == [], "right after the load"
    assert resumed.version() == whole.version()
    for made in (whole, resumed):
        for state in made.optimizer.state.values():
            assert {t.device.type for t in state.values()} == {device.type}
    for rows in batches(5)[3:]:
        whole.step(rows)
        resumed.step(rows)
    assert differing(whole, resumed) == []
    if dtype == "float16":
        assert whole.scaler.get_scale() == resumed.scaler.get_scale()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_checkpoint_of_the_card_goes_on_on_the_host(
    device: torch.device, tmp_path: Path, dtype: str
) -> None:
    """Weights to the bit; then a step of the host in float32 beside one of the card."""
    made, _ = trained(device, dtype, 2)
    made.save(str(tmp_path))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in made.trained.items():
        assert torch.equal(plain.get_parameter(name), tensor.cpu()), name
    here, _ = trained(CPU, dtype, 0)
    here.load(str(tmp_path))
    assert here.version() == made.version()
    assert {t.device.type for s in here.optimizer.state.values() for t in s.values()} == {"cpu"}
    rows = batches(3)[2]
    here.step(rows)
    made.step(rows)
    # float32: one gradient; half types round in their own places
    off = distance(gradients(made), gradients(here))
    assert off < {"float32": FLOAT32, "bfloat16": 0.05, "float16": 0.01}[dtype]
    back, _ = trained(device, dtype, 0)
    here.save(str(tmp_path / "host"))
    back.load(str(tmp_path / "host"))
    assert back.version() == here.version()


@pytest.mark.parametrize("share", [True, False])
def test_recomputed_activations_change_nothing(device: torch.device, share: bool) -> None:
    found = []
    for checkpointing in (False, True):
        config = {"gradient_checkpointing": checkpointing, "share_prompts": share}
        made = learner(small(), device, config=config)
        made.step(batches(1)[0])
        found.append(gradients(made))
    assert distance(found[1], found[0]) < FLOAT32


def test_passes_over_one_batch_and_a_reference(device: torch.device) -> None:
    """Two passes of two optimizer steps with a KL term: weights and metrics of float64 on the host.

    Old log-probs, clips and the reference count from the second optimizer step on. AdamW divides by
    the root of the second moment, so that a gradient near 0 moves a weight as far as a large one:
    99% of the weights are compared, to 1% of a step's length.
    """
    algorithm = {"num_iterations": 2, "num_minibatches": 2, "beta": 0.1, "epsilon": 0.05}
    rows = batches(1, num_minibatches=2)[0]
    start = torch.cat([p.detach().flatten() for p in small(torch.float64).parameters()])
    moved, found = [], []
    for where, dtype in ((CPU, torch.float64), (device, torch.float32)):
        made = learner(small(dtype), where, algorithm=algorithm, config={"learning_rate": 1e-3})
        found.append(made.step(rows))
        now = torch.cat([p.detach().double().cpu().flatten() for p in made.model.parameters()])
        moved.append(now - start)
    assert found[0]["optimizer_steps"] == found[1]["optimizer_steps"] == 4
    assert found[0]["clip_ratio/region_mean"] > 0
    for name in ("loss", "entropy", "kl", "grad_norm", "clip_ratio/region_mean"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-3, abs=1e-6), name
    apart = (moved[1] - moved[0]).abs()
    assert (apart < 1e-5).double().mean() > 0.99
    assert distance(moved[1], moved[0]) < 1e-2


def test_float16_skips_an_overflow_and_goes_on(device: torch.device) -> None:
    made = learner(small(), device, dtype="float16")
    rows = batches(1)[0]
    before = made.version()
    weights = {n: p.detach().clone() for n, p in made.trained.items()}
    made.scaler.scale(torch.zeros((), device=device))  # the scaler makes its state on first use
    made.scaler.update(2.0**120)
    metrics = made.step(rows)
    assert metrics["optimizer_steps/overflow"] == 1
    assert metrics["optimizer_steps"] == 0
    assert made.version() == before
    assert all(torch.equal(p, weights[n]) for n, p in made.trained.items())
    assert made.scaler.get_scale() == 2.0**119
    made.scaler.update(2.0**10)
    metrics = made.step(rows)
    assert metrics["optimizer_steps"] == 1
    assert made.version().step == 1
    assert metrics["grad_norm"] > 0


def test_which_operations_of_a_step_have_no_fixed_order(card: torch.device) -> None:
    """PyTorch names them; the list is to be empty, or docs/checks.md is to name what is on it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for share in (True, False):
                config = {"share_prompts": share}
                made = learner(small(tie_word_embeddings=True), card, config=config)
                made.step(batches(1)[0])
    finally:
        torch.use_deterministic_algorithms(False)
    found = sorted(
        {str(w.message).partition(". ")[0] for w in said if "determinist" in str(w.message)}
    )
    # said of every product; cuBLAS differs between streams only, and all of this is on one
    found = [text for text in found if "CuBLAS" not in text]
    assert found == []
