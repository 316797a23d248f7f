"""`grpo import-trl`: files of `trl grpo --config` become recipes, or sentences with their lines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from grpo import cli
from grpo.config import config as recipes
from grpo.config.trl.grpo_fields import FIELDS
from grpo.config.trl.script import SCRIPT_FIELDS

GOOD = """\
model_name_or_path: org/model
attn_implementation: sdpa
use_peft: true
lora_r: 8
lora_dropout: 0.0
dataset_name: org/rows
reward_funcs: [accuracy_reward, my_lib.rewards.short, get_soft_overlong_punishment]
reward_weights: [1.0, 0.5, 2.0]
reward_model_name_or_path: null
learning_rate: 1e-5
gradient_accumulation_steps: 4
num_train_epochs: 2
warmup_steps: 0.1
eval_strategy: epoch
dataset_test_split: validation
"""
BAD = """\
model_name_or_path: org/model
dtype: bfloat16

learning_rat: 1e-5
repetition_penalty: 1.1
max_steps: "100"
reward_funcs: [accuracy]
warmup_ratio: 0.1
use_peft: true
"""


def imported(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, str, str]:
    file = tmp_path / "theirs.yaml"
    file.write_text(text)
    code = cli.main(["import-trl", str(file), *options])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_file_of_trl_becomes_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--rows", "103", "--eval-rows", "20")
    code, text, _ = imported(GOOD, tmp_path, capsys, *options)
    assert code == 0
    found = yaml.safe_load(text)
    recipes.from_dict(found)
    # 4 micro-steps of 8 completions are 4 prompts, and 25 whole batches of them an epoch
    assert found["rollout"] == {
        "prompts_per_step": 4,
        "num_generations": 8,
        "max_completion_length": 512,
        "temperature": 1.0,
    }
    assert found["learner"]["max_steps"] == 50
    assert found["learner"]["warmup_steps"] == 5
    assert found["learner"]["learning_rate"] == 1e-5
    assert found["model"]["lora"] == {
        "rank": 8,
        "alpha": 32,
        "target_modules": ["q_proj", "v_proj"],
    }
    assert found["data"]["args"] == {
        "path": "org/rows",
        "split": "train",
        "answer": None,
        "heldout_split": "validation",
    }
    assert found["eval"] == {
        "num_tasks": 20,
        "num_samples": 8,
        "temperature": 1.0,
        "steps": 25,
        "before": False,
    }
    assert found["rewards"] == [
        {"name": "trl.rewards:accuracy_reward", "weight": 1.0},
        {"name": "my_lib.rewards:short", "weight": 0.5},
        {"name": "soft_overlong", "args": {"max_length": 1280, "cache": 256}, "weight": 2.0},
    ]
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert "# line 2: attn_implementation = 'sdpa': changes nothing here" in comments[1]
    assert [line for line in comments if "last 3 rows of each epoch" in line]


def test_what_is_refused_is_said_at_once_with_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, said = imported(BAD, tmp_path, capsys, "--out", str(tmp_path / "made.yaml"))
    assert (code, text) == (2, "")
    assert not (tmp_path / "made.yaml").exists()
    assert len(said.splitlines()) == 8
    for words in (
        "dataset_name is missing",
        "write lora_dropout: 0.0",
        "yaml:2: dtype = 'bfloat16': weights that are trained are float32",
        "yaml:4: TRL has no argument 'learning_rat'. Did you mean 'learning_rate'?\n",
        "yaml:5: repetition_penalty = 1.1",
        "yaml:6: max_steps = '100' should be a whole number, without quotes.",
        "yaml:7: reward_funcs has 'accuracy'; valid: accuracy_reward",
        "yaml:8: TRL has no argument 'warmup_ratio': write warmup_steps with a share",
    ):
        assert words in said


def test_the_recipe_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recipe.yaml"
    options = ("--rows", "103", "--eval-rows", "20", "--out", str(out))
    assert imported(GOOD, tmp_path, capsys, *options)[:2] == (0, "")
    assert yaml.safe_load(out.read_text())["name"] == "theirs"
    code, _, said = imported(GOOD, tmp_path, capsys, *options)
    assert code == 2
    assert "there is such a file" in said
    code, _, said = imported(GOOD, tmp_path, capsys)
    assert "--rows N" in said
    assert "--eval-rows N" in said


def test_every_argument_of_trls_script_is_known() -> None:
    trl = pytest.importorskip("trl")
    from trl.scripts.grpo import GRPOScriptArguments
    from trl.scripts.utils import DatasetMixtureConfig

    missing = dataclasses.MISSING
    fields: list[Any] = [
        field
        for record in (GRPOScriptArguments, trl.ModelConfig, DatasetMixtureConfig)
        for field in dataclasses.fields(record)
    ]
    theirs = {
        field.name: field.default if field.default is not missing else field.default_factory()
        for field in fields
    }
    of_parser = {"env", "accelerate_config", "num_processes"}
    ours = {k: f.default for k, f in SCRIPT_FIELDS.items() if k not in of_parser}
    assert ours == theirs
    assert not FIELDS.keys() & SCRIPT_FIELDS.keys()
