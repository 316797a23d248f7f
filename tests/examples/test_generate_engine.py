"""docs/examples/generate_engine.md: the engine passes the contract, and a step trains with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from grpo.commands.train import train_recipe
from grpo.config import config
from grpo.model import pretrained
from grpo.outside.code import plugins
from grpo.types import EngineSpec, Request
from tests.examples.pages import write_files
from tests.rollout.contract import EngineContract
from tests.rollout.tiny_models import V0, request

BASE = str(Path(__file__).parents[2] / "recipes" / "assets" / "parity-base")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The engine as a recipe names it."""
    files = write_files("generate_engine", tmp_path_factory.mktemp("engine"))
    text = files["generate_engine.py"].read_text()
    assert len(text.splitlines()) <= 120
    return f"{files['generate_engine.py']}:GenerateEngine"


class TestContract(EngineContract):
    stepwise = False
    vocab_size: ClassVar[int] = 10

    def model(self, seed: int = 0) -> Any:
        """The base, or with a seed the base with noise on every matrix."""
        model = pretrained.load_model(BASE, torch.float32).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters() if seed else ():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * 0.2 * parameter.std())
        return model

    def asked(self, count: int = 5, n: int = 3, **sampling: Any) -> list[Request]:
        limit = sampling.pop("max_tokens", 12)
        return [
            request(f"r{i}", [5, 6, 7, 4][: 1 + i % 4], n, i, max_tokens=limit + i, **sampling)
            for i in range(count)
        ]

    @pytest.fixture
    def engine(self, address: str) -> Iterator[Any]:
        spec = EngineSpec(model=BASE, max_length=64, version=V0)
        engine = plugins.load("engine", address, {"spec": spec, "max_rows": 7})
        yield engine
        engine.close()


def test_a_step_of_the_recipe_trains_with_it(address: str, tmp_path: Path) -> None:
    recipe = config.load(
        "parity-r1-zero",
        [
            f"run.dir={tmp_path / 'run'}",
            f"rollout.engine={address}",
            "rollout.prompts_per_step=8",
            "learner.max_steps=1",
            "eval.num_tasks=8",
            "eval.num_samples=1",
        ],
    )
    train_recipe(recipe)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    assert metrics["sampling/sampling_logp_difference/mean"] < 1e-4
