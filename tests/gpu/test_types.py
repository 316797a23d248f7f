"""What the card is, and the type that `auto` makes of it.

First suspicion of a failure: a capability that `grpo/model/compute_types.py` does not know.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from grpo.commands.process import described
from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.model.compute_types import chosen
from grpo.model.ranks import join
from grpo.outside.terminal.console import Console


def test_auto_is_what_the_card_computes_in(card: torch.device) -> None:
    major, _ = torch.cuda.get_device_capability(card)
    wanted = "bfloat16" if major >= 8 else "float16"
    assert chosen("auto") == chosen("auto", card) == wanted
    assert chosen("auto", torch.device("cpu")) == "float32"


def test_a_run_in_the_type_of_the_device(device: torch.device, tmp_path: Path) -> None:
    """It is settled before the run is recorded, and sampler and learner agree in it."""
    settings = [
        *(f"run.dir={tmp_path / 'run'}", "model.dtype=auto", "learner.max_steps=2"),
        *("eval.num_tasks=8", "eval.num_samples=1", "agreement.steps=1", "run.threads=1"),
    ]
    train_recipe(load("parity-r1-zero", settings), Console(quiet=True))
    recorded = (tmp_path / "run" / "resolved.json").read_text()
    assert f'"dtype": "{chosen("auto", device)}"' in recorded
    assert '"auto"' not in recorded


def test_the_record_names_the_card(card: torch.device) -> None:
    found = described(join())
    assert found["process"]["device"] == "cuda"
    assert found["computes"]["GPU"] == torch.cuda.get_device_name(card)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_of_full_precision(device: torch.device, dtype: torch.dtype) -> None:
    """TF32 would be off by 3e-4. Torch leaves it off unless asked; a variable may have asked."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 300, 300, dtype=dtype)
    found = (a.to(device) @ b.to(device)).cpu()
    exact = a.double() @ b.double()
    assert (found - exact).norm() / exact.norm() < (1e-6 if dtype == torch.float32 else 1e-14)
