"""Whole stages on models with a recurrent state: they run, or are refused before the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from grpo.commands.plan import print_plan
from grpo.commands.train import train_recipe
from grpo.config.config import from_dict
from grpo.errors import RecipeError
from grpo.outside.terminal.console import Console
from grpo.stages.from_scratch import build_tokenizer, save_tokenizer
from tests.grpo.model.families import quiet, tiny

LETTERS = "abcdefgh"


def saved(folder: Path, family: str) -> str:
    tokenizer = build_tokenizer(LETTERS)
    model: Any = tiny(family)
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
        config.bos_token_id = None
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, str(folder))
    return str(folder)


def rows(path: Path) -> str:
    words = [a + b + c for a in LETTERS for b in LETTERS for c in LETTERS[:2]]
    lines = [json.dumps({"prompt": w, "answer": w[0], "completion": w[::-1]}) for w in words]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def rl(base: str, file: str, folder: Path) -> dict[str, Any]:
    stage = {
        "kind": "rl",
        "model": {"path": base},
        "data": {
            "source": "file",
            "args": {"path": file, "heldout_fraction": 0.2},
            "template": "raw",
            "max_prompt_length": 8,
        },
        "rollout": {"prompts_per_step": 3, "num_generations": 4, "max_completion_length": 6},
        "rewards": [{"name": "random"}],
        "agreement": {"steps": 1},
        "learner": {"max_steps": 2, "learning_rate": 1e-3},
        "eval": {"num_tasks": 4, "num_samples": 2},
    }
    return {"name": "hybrid", "run": {"dir": str(folder), "threads": 1}, "stages": [stage]}


def sft(base: str, file: str, folder: Path, **learner: Any) -> dict[str, Any]:
    stage = {
        "kind": "sft",
        "model": {"path": base},
        "data": {"path": file, "template": "raw"},
        "learner": {"max_steps": 2, "batch_size": 4, "max_length": 32} | learner,
    }
    return {"name": "hybrid-sft", "run": {"dir": str(folder), "threads": 1}, "stages": [stage]}


@pytest.mark.parametrize("family", ["qwen3_5_text", "lfm2", "falcon_h1", "mamba2"])
def test_a_run_of_reinforcement_learning_ends_with_a_changed_model(family, tmp_path):
    with quiet():
        base = saved(tmp_path / "base", family)
        recipe = from_dict(rl(base, rows(tmp_path / "rows.jsonl"), tmp_path / "run"))
        print_plan(recipe, Console(quiet=True))
        train_recipe(recipe, Console(quiet=True))
        before = AutoModelForCausalLM.from_pretrained(base).state_dict()
        after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    assert before.keys() == after.keys()
    assert any(not before[name].equal(after[name]) for name in before)


def test_fine_tuning_refuses_to_pack_what_would_run_into_the_next_row(tmp_path):
    with quiet():
        base, file = saved(tmp_path / "base", "lfm2"), rows(tmp_path / "rows.jsonl")
        with pytest.raises(RecipeError, match=r"learner\.packing = true.*set it to false"):
            train_recipe(
                from_dict(sft(base, file, tmp_path / "packed", packing=True)), Console(quiet=True)
            )
        train_recipe(from_dict(sft(base, file, tmp_path / "plain")), Console(quiet=True))
    assert (tmp_path / "plain" / "model" / "config.json").is_file()


def test_a_plan_refuses_an_encoder(tmp_path):
    with quiet():
        base, file = saved(tmp_path / "base", "roberta"), rows(tmp_path / "rows.jsonl")
        for recipe in (rl(base, file, tmp_path / "run"), sft(base, file, tmp_path / "run")):
            with pytest.raises(RecipeError, match="a roberta model is an encoder"):
                print_plan(from_dict(recipe), Console(quiet=True))
