"""The R1 pipelines, every stage for a few steps: what one stage leaves, the next one takes.

That they learn is in benchmarks/results (three full seeds); here the wiring has to hold.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo.commands.train import train_recipe
from grpo.config.config import load
from grpo.data.parity import Bilingual
from grpo.outside.terminal.console import Console
from grpo.rewards.language import LanguageConsistency
from grpo.types import Task

ROOT = Path(__file__).resolve().parents[2]
# SFTTrainer's and datasets' own, not ours.
pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
TINY = ("hidden_size=32", "num_layers=1", "num_heads=1", "intermediate_size=64")
FEW = (
    *(f"base.model.{size}" for size in TINY),
    "base.learner.max_steps=60",
    "base.learner.batch_size=32",
    "base.learner.learning_rate=1e-2",
    "cold.learner.max_steps=20",
    "cold.learner.learning_rate=3e-3",
    *(f"{rl}.learner.max_steps=1" for rl in ("zero", "dev", "r1")),
    *(f"{rl}.rollout.prompts_per_step=4" for rl in ("zero", "dev", "r1")),
    *(f"{rl}.eval.num_tasks=4" for rl in ("zero", "dev", "r1")),
    "samples.filter.num_tasks=40",
    "samples.filter.min_reward=0.0",  # a model this green is rarely right
    "sft.learner.max_steps=2",
    "general.num_tasks=4",
    "table.num_tasks=4",
)


def run(name: str, folder: Path, *overrides: str) -> dict[str, dict[str, object]]:
    """Summary of each stage."""
    recipe = load(name, [f"run.dir={folder}", "run.threads=1", *overrides])
    train_recipe(recipe, Console(quiet=True))
    places = {stage.name: folder / stage.name / "summary.json" for stage in recipe.stages}
    return {stage: json.loads(path.read_text()) for stage, path in places.items()}


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_stage_takes_what_an_earlier_one_left(tmp_path: Path) -> None:
    found = run("mini-r1", tmp_path / "r1", *FEW)
    kept = rows(tmp_path / "r1" / "samples" / "data" / "train.jsonl")
    assert found["samples"]["rows"] == len(kept) > 0
    judge = LanguageConsistency("en")
    shares = [judge.grade(row["completion"], None, Task(uid="", prompt="")).value for row in kept]
    assert min((share for share in shares if share is not None), default=1.0) >= 0.95
    # A tenth of the rows are general ones, so there are nine samples to each of them.
    assert found["sft"]["rows"] == len(kept) + round(len(kept) / 9)
    models = ["base", "zero", "cold", "dev", "sft", "r1"]
    for table in ("general", "table"):
        assert list(found[table]["models"]) == models
        assert found[table]["baseline"] == "zero"
    # Two models start from the base itself, and each stage changed its weights.
    weights = [(tmp_path / "r1" / m / "model" / "model.safetensors").read_bytes() for m in models]
    assert len(set(weights)) == len(models)
    origins = {stage: set(found[stage]["origin"]["inputs"]) for stage in ("cold", "sft", "r1")}
    assert "model.path = stage:base" in origins["cold"] & origins["sft"]
    assert "data.path = stage:samples" in origins["sft"]
    assert "model.path = stage:sft" in origins["r1"]

    student = run(
        "mini-distill",
        tmp_path / "distill",
        *(f"student.model.{size}" for size in ("hidden_size=16", *TINY[1:])),
        "student.learner.max_steps=5",
        "student.learner.batch_size=32",
        *(f"{arm}.learner.max_steps=2" for arm in ("distilled", "cold", "shuffled")),
        *(f"{arm}.filter.num_tasks=40" for arm in ("distilled", "shuffled")),
        *(f"{arm}.filter.min_reward=0.0" for arm in ("distilled", "shuffled")),
        *(f"{arm}.teacher.path={tmp_path}/r1/r1/model" for arm in ("distilled", "shuffled")),
        "table.num_tasks=4",
    )
    assert list(student["table"]["models"]) == ["student", "distilled", "cold", "shuffled"]


@pytest.mark.parametrize(("name", "ending"), [("cold-start", "="), ("general", "-")])
def test_shipped_rows_are_right_and_not_held_out(name: str, ending: str) -> None:
    shipped = rows(ROOT / "recipes" / "assets" / f"mini-r1-{name}.jsonl")
    source = Bilingual(bits=12)
    heldout = {source.task("heldout", i).prompt[:-1] for i in range(source.size("heldout"))}
    judge = LanguageConsistency("en")
    for row in shipped:
        bits = row["prompt"].removesuffix(ending)
        assert len(bits) == 12
        assert bits not in heldout
        gold = bits.count("1") % 2 if ending == "=" else bits[-1]
        assert row["completion"].endswith(f"</think><answer>{gold}</answer>")
        if ending == "=":
            assert judge.grade(row["completion"], None, Task(uid="", prompt="")).value == 1.0
    assert len({row["prompt"] for row in shipped}) == len(shipped)
