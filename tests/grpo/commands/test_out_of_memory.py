"""Allocations that really fail, in every part: one sentence with settings that are valid."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from grpo.commands.out_of_memory import (
    LEARNING,
    LOADING,
    SAMPLING,
    SAVING,
    cheaper,
    explained_by,
    is_shortage,
    of_tasks,
    part_of,
)
from grpo.config import config
from grpo.errors import EngineError, MemoryShortage, RewardError
from tests.grpo.tiny_bases import save_tiny_base

IMPOSSIBLE = 1 << 45

# The process may take `room` bytes more from the moment at which `trigger` is called. Room 0: what
# was freed before may do for a small model, so reading it back asks for a GiB.
SCRIPT = """
import importlib, resource, sys
import torch
from grpo import cli

module, name, room, *arguments = sys.argv[1:]
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
plain = getattr(owner, name)

def tight(*args, **kwargs):
    size = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if "VmSize" in l)
    resource.setrlimit(resource.RLIMIT_AS, (size + int(room), -1))
    if room == "0":
        from grpo.learner import saved
        saved.check_saved = lambda *_, **__: torch.empty(2**30, dtype=torch.uint8)
    return plain(*args, **kwargs)

setattr(owner, name, tight)
sys.exit(cli.main(arguments))
"""


def run(tmp_path, trigger, arguments, room=2**25):
    module, _, name = trigger.partition(":")
    command = [sys.executable, "-c", SCRIPT, module, name, str(room), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("grpo: error: ")]
    return line


@pytest.fixture
def recipe(tmp_path):
    save_tiny_base(tmp_path / "base", max_position=4096, hidden_size=64, num_heads=4)
    rows = [{"prompt": a + b + c, "answer": "a"} for a in "abcd" for b in "abcd" for c in "abcd"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sft.jsonl").write_text(
        f'{{"prompt": "ab", "completion": "{"cdefgh" * 300}"}}\n' * 8
    )
    (tmp_path / "r.py").write_text(
        "def r(completions, **_):\n    return [len(c) for c in completions]\n"
    )
    (tmp_path / "rl.yaml").write_text(
        """
name: t
run: {dir: run, threads: 1, save_steps: 1}
model: {path: base}
data:
  source: file
  args: {path: rows.jsonl, heldout_fraction: 0.5}
  template: raw
  max_prompt_length: 64
rollout: {prompts_per_step: 8, num_generations: 32, max_completion_length: 2000}
rewards: [{name: 'r.py:r'}]
learner: {max_steps: 2, share_prompts: false}
agreement: {steps: 0}
eval: {num_tasks: 2, num_samples: 32}
"""
    )
    (tmp_path / "sft.yaml").write_text(
        """
name: s
run: {dir: run, threads: 1}
stages:
  - kind: sft
    name: cold
    model: {path: base}
    data: {path: sft.jsonl}
    learner: {batch_size: 8, max_steps: 2}
"""
    )
    return tmp_path


def settings_of(line):
    return dict(re.findall(r"([a-z_.]+)=([\w.]+) \(now", line))


def accepted(file, line):
    """Every advice of `line`, taken; the recipe with all of them."""
    found = settings_of(line)
    assert found
    for name, value in found.items():
        config.load(file, [f"{name}={value}"])
    return found


def test_the_learner(recipe):
    short = ["rollout.max_completion_length=100"]
    line = run(
        recipe, "grpo.learner.learner:TorchLearner.step", ["train", recipe / "rl.yaml", *short]
    )
    assert re.search(
        r"stage rl: out of memory in the learner's .* asked for [\d.]+ [MG]iB more", line
    )
    found = accepted(recipe / "rl.yaml", line)
    assert found["learner.tokens_per_micro_batch"] == "8192"
    assert found["learner.gradient_checkpointing"] == "true"
    assert len(found) == 3
    # nothing was learned yet, so the same folder may be used again
    assert "new run" not in line
    again = ["train", recipe / "rl.yaml", *short, "learner.max_steps=1", "eval.num_tasks=1"]
    module = [sys.executable, "-m", "grpo.cli", *map(str, again)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run(module, cwd=recipe, env=environment, check=True, capture_output=True)


def test_the_engine_and_the_evaluation(recipe):
    trigger, file = "grpo.rollout.embedded.torch_engine:TorchEngine.submit", recipe / "rl.yaml"
    line = run(recipe, trigger, ["train", file])
    assert "out of memory in the engine, for the rows it samples" in line
    found = accepted(file, line)
    assert found["rollout.max_completion_length"] == "1000"
    assert "rollout.engine_args.max_rows=128" in line
    line = run(recipe, trigger, ["eval", "base", "--recipe", file, "eval.num_samples=256"])
    assert "out of memory in the engine in an evaluation" in line
    assert "rollout.engine_args.max_rows=128" in line


def test_fine_tuning(recipe):
    line = run(
        recipe, "grpo.stages.sft_trainer:StageTrainer.training_step", ["train", recipe / "sft.yaml"]
    )
    assert "stage cold: out of memory in the learner's forward and backward pass" in line
    found = accepted(recipe / "sft.yaml", line)
    assert found["learner.max_length"] == "1024"
    assert found["learner.batch_size"] == "4"


def test_loading(recipe):
    line = run(recipe, "grpo.stages.rl:build_parts", ["train", recipe / "rl.yaml"], room=2**12)
    assert "loading the model" in line
    assert "model.lora.rank=16 (now 0)" in line


def test_a_run_that_has_begun_goes_on_or_starts_from_its_checkpoint(recipe):
    short = ["rollout.max_completion_length=100", "rollout.num_generations=2", "eval.num_tasks=1"]
    short += ["learner.max_steps=1", "eval.num_samples=4"]
    train = ["train", recipe / "rl.yaml", *short]
    line = run(recipe, "grpo.stages.rl_folder:RLFolder.save_model", train, room=0)
    assert "out of memory in saving the model" in line
    assert f"from model.path={recipe}/run/checkpoints/step_000001), since a run keeps" in line
    assert line.endswith(f"grpo train --resume {recipe}/run.")


def raised(make):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of any kind
        make()
    return caught.value


def test_what_is_a_lack_of_memory():
    assert is_shortage(raised(lambda: torch.empty(IMPOSSIBLE, dtype=torch.uint8)))
    assert is_shortage(raised(lambda: np.empty(1 << 60, dtype=np.uint8)))
    assert is_shortage(MemoryError())
    assert is_shortage(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_shortage(EngineError("vLLM: No available memory for the cache blocks."))
    assert is_shortage(OSError(12, "Cannot allocate memory"))
    assert not is_shortage(RewardError("the grader ran out of memory"))
    assert not is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    said = r"asked for 2\.0 GiB more; set --max-tokens 1024\.$"
    with pytest.raises(MemoryShortage, match=said), explained_by("--max-tokens 1024"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("part", [LEARNING, LOADING, SAMPLING, SAVING])
@pytest.mark.parametrize("name", sorted(config.shipped()))
def test_every_advice_for_every_recipe_is_valid(name, part):
    recipe = config.load(name)
    for stage in recipe.stages:
        prefix = f"{stage.name}." if len(recipe.stages) > 1 else ""
        for text in cheaper(stage, part):
            config.load(name, [prefix + text.partition(" (now")[0]])


def test_options_of_tasks_are_options():
    assert of_tasks("vllm", {"max_num_seqs": 1}, 1, "bfloat16") == [
        "--engine-args max_num_seqs=1",
        "--max-tokens 1",
    ]
    assert part_of(RuntimeError()) == "none of its larger parts"
