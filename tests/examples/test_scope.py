"""docs/scope.md: what it says is refused is refused, and a reward model of TRL's is a reward."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlavaConfig,
    T5Config,
)

import grpo
from grpo.errors import RecipeError
from grpo.model.checks import check_text_model
from grpo.rewards.reward_model import RewardModel
from tests.examples.pages import DOCS, write_files

BASE = Path(str(grpo.__file__)).parent / "recipes" / "assets" / "parity-base"


@pytest.mark.parametrize(
    ("config", "message"),
    [(LlavaConfig(), "reads more than text"), (T5Config(), "no causal language model")],
)
def test_models_that_do_not_go_on_from_text_are_refused(config: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_text_model(config, "model.path")


def test_what_trls_reward_trainer_leaves_is_a_reward(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    script = write_files("scope", tmp_path, DOCS)["reward_model_trl.py"]
    shutil.copytree(BASE, tmp_path / "base")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    judge = tmp_path / "judge"
    reward = RewardModel(path=str(judge))
    prompts, completions = ["0110=", "01="], ["<answer>1</answer>", "<answer>0</answer>"]
    found = reward(prompts=prompts, completions=completions)
    model = AutoModelForSequenceClassification.from_pretrained(judge).eval()
    tokenizer = AutoTokenizer.from_pretrained(judge)
    with torch.no_grad():
        logits = [
            float(model(**tokenizer(prompt + completion, return_tensors="pt")).logits[0, 0])
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    assert found == pytest.approx(logits, abs=1e-5)
    assert logits[0] != logits[1]
