"""Every fault that a later stage would refuse, one each: a plan and a run both name it at once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import grpo.commands.train
from grpo.commands import plan
from grpo.errors import GrpoError

from .broken_recipes import (
    MINE,
    QUIET,
    ROWS,
    begun,
    recipe,
    reject,
    rows_with,
    without,
    write_files,
)

# what is wrong: settings of the recipe (FOLDER: where its files are), rows of r.jsonl, what is said
FAULTS: dict[str, tuple[dict[str, Any], list[Any] | None, list[str]]] = {
    "data file": ({"b.data.args.path": "gone.jsonl"}, None, ["b.data.args.path = 'gone.jsonl'"]),
    "held-out file": (
        {"b.data.args.heldout_path": "h.jsonl"},
        None,
        ["b.data.args.heldout_path = 'h.jsonl'"],
    ),
    "a part's file": (
        {
            "b.data.source": "mixture",
            "b.data.args": {"parts": [{"source": "file", "args": {"path": "gone.jsonl"}}]},
        },
        None,
        ["b.data.args.parts.0.args.path = 'gone.jsonl'"],
    ),
    "reward model": (
        {"b.rewards.0": {"name": "reward_model", "args": {"path": "./gone"}}},
        None,
        ["b.rewards.0.args.path = './gone'"],
    ),
    "no answers": ({}, without("answer"), ["r.jsonl:3 has no", "'answer'", "b.rewards.0", "level"]),
    "answers by another name": (
        {},
        [{"prompt": row["prompt"], "anwser": row["answer"]} for row in ROWS],
        ["Did you mean 'anwser'?", "name that in b.data.args.answer"],
    ),
    "one row without": ({}, rows_with(answer=None), ["r.jsonl:3 has no column 'answer'"]),
    "held-out rewards": (
        {"b.rewards.0": {"name": "format"}, "b.eval.rewards": [{"name": "accuracy"}]},
        without("answer"),
        ["has no column 'answer'", "b.eval.rewards.0 = 'accuracy'"],
    ),
    "tests": (
        {"b.rewards.0": {"name": "code"}},
        None,
        ["no column 'tests'", "'code' needs"],
    ),
    "a function's column": (
        {"b.rewards.0": {"name": f"{MINE}:level"}},
        without("level"),
        ["r.jsonl:3 has no column 'level'", "mine.py:level"],
    ),
    "no rows": ({"b.rollout.engine_args": {"max_rows": 0}}, None, ["b.rollout.engine_args.max_r"]),
    "no address": (
        {"b.rollout.engine": "server", "b.rollout.engine_args": {"url": "here"}},
        None,
        ["stage b", "rollout.engine_args.url = 'here'"],
    ),
    "a class's column": (
        {"b.rewards.0": {"name": f"{MINE}:Levels"}},
        without("level"),
        ["r.jsonl:3 has no column 'level'"],
    ),
    "a gate's column": (
        {"b.rewards.0": {"name": "gate", "args": {"reward": f"{MINE}:level"}}},
        without("level"),
        ["no column 'level'", "b.rewards.0 = 'gate' ("],
    ),
    "a gate's verifier": (
        {"b.rewards.0": {"name": "gate", "args": {"reward": "format", "verifier": "countdown"}}},
        None,
        ["no column 'numbers' or 'nums'", "(countdown)"],
    ),
    "a route": (
        {"b.rewards.0": {"name": "routed", "args": {"routes": {"math": {"name": "accuracy"}}}}},
        None,
        ["r.jsonl:3: the task has no column 'task'"],
    ),
    "a parameter's name": (
        {"b.rewards.0": {"name": f"{MINE}:typo"}},
        None,
        ["parameter 'completion'", "'completions'"],
    ),
    "a parameter by place": (
        {"b.rewards.0": {"name": f"{MINE}:place"}},
        None,
        ["by its place only"],
    ),
    "a reward's attribute": (
        {"b.rewards.0": {"name": f"{MINE}:plian"}},
        None,
        ["b.rewards.0: ", "Did you mean 'plain'"],
    ),
    "a reward that is none": (
        {"b.rewards.0": {"name": f"{MINE}:value"}},
        None,
        ["leads to int 3, not to something to call"],
    ),
    "a reward's class": ({"b.rewards.0": {"name": f"{MINE}:Silent"}}, None, ["cannot be called"]),
    "a reward's argument": (
        {"b.rewards.0": {"name": f"{MINE}:Scaled"}},
        None,
        ["b.rewards.0: ", "needs 'factor'"],
    ),
    "a reward that fails": (
        {"b.rewards.0": {"name": "FOLDER/broken.py:r"}},
        None,
        ["b.rewards.0: ", "no_such_module_at_all"],
    ),
    "an advantage": (
        {"b.algorithm.advantage": f"{MINE}:no"},
        None,
        ["b.algorithm.advantage", "'no'"],
    ),
    "an advantage's call": (
        {"b.algorithm.advantage": f"{MINE}:nothing"},
        None,
        ["cannot be called with (rewards_P_G)"],
    ),
    "an advantage's argument": (
        {"b.algorithm": {"advantage": f"{MINE}:shifted", "advantage_args": {"shifft": 1.0}}},
        None,
        ["b.algorithm.advantage", "'shifft'", "'shift'"],
    ),
    "an advantage's missing argument": (
        {"b.algorithm.advantage": f"{MINE}:shifted"},
        None,
        ["needs 'shift' in algorithm.advantage_args"],
    ),
    "what an advantage is given": (
        {"b.algorithm": {"advantage": f"{MINE}:shifted", "advantage_args": {"groups": []}}},
        None,
        ["b.algorithm.advantage", "'groups'", "Valid: shift"],
    ),
    "an objective's columns": (
        {"b.algorithm.loss_type": f"{MINE}:columned"},
        None,
        ["cannot be called with (groups)"],
    ),
    "what an objective of ours needs": (
        {"b.algorithm.loss_type": f"{MINE}:capped"},
        None,
        ["b.algorithm.loss_type", "needs algorithm.epsilon_high"],
    ),
    "an objective": (
        {"b.algorithm.loss_type": f"{MINE}:no"},
        None,
        ["b.algorithm.loss_type", "'no'"],
    ),
    "a callback": ({"b.callbacks": [{"name": f"{MINE}:no"}]}, None, ["b.callbacks.0: ", "'no'"]),
    "a callback's call": (
        {"b.callbacks": [{"name": f"{MINE}:pair"}]},
        None,
        ["cannot be called with (step)"],
    ),
    "a curriculum's file": (
        {"b.curriculum": [{"name": "pass_rates", "args": {"path": "gone.jsonl"}}]},
        None,
        ["gone.jsonl"],
    ),
    "an engine's argument": (
        {"b.rollout.engine_args": {"max_row": 3}},
        None,
        ["b.rollout.engine: ", "'max_rows'"],
    ),
    "an engine's methods": (
        {"b.rollout.engine": f"{MINE}:Engine"},
        None,
        ["no poll and no cancel"],
    ),
    "a source's attribute": ({"b.data.source": f"{MINE}:no", "b.data.args": {}}, None, ["'no'"]),
    "a source's methods": (
        {"b.data.source": f"{MINE}:Half", "b.data.args": {}},
        None,
        ["no task."],
    ),
    "a source that fails": (
        {"b.data.source": f"{MINE}:Source", "b.data.args": {}},
        None,
        ["b.data: ", "no connection", "mine.py:"],
    ),
    "a source's tasks": (
        {"b.data.source": f"{MINE}:Rows", "b.data.args": {}},
        None,
        ["not a grpo.Task"],
    ),
    "no JSON": ({}, [*ROWS[:2], "{'prompt': 1}"], ["b.data: ", "r.jsonl:3 is not JSON"]),
    "an empty answer": (
        {},
        rows_with(answer=float("nan")),
        ["r.jsonl:3: the answer"],
    ),
    "nothing held out": (
        {"b.data.args.heldout_fraction": 0.0},
        None,
        ["b.data: ", "no held-out tasks"],
    ),
    "nothing to train on": ({"b.data.args.heldout_fraction": 1.0}, None, ["b.data: ", "no tasks"]),
    "a tracker": ({"run.trackers": ["trackio"]}, None, ["run.trackers = 'trackio'", "pip install"]),
    "an engine's package": (
        {"b.rollout.engine": "vllm"},
        None,
        ["b.rollout.engine = 'vllm' needs vllm", "grpo-toolkit[vllm]"],
    ),
    "an adapter's package": ({"b.model.lora.rank": 4}, None, ["b.model.lora needs peft"]),
    "a prompt too long": (
        {"b.data.overlong": "error"},
        rows_with(prompt="01" * 20 + "="),
        ["stage b: ", "r.jsonl:3: the prompt has 41 tokens", "data.max_prompt_length=32"],
    ),
    "every prompt too long": (
        {"b.data.max_prompt_length": 4},
        None,
        ["stage b: ", "longer than data.max_prompt_length=4"],
    ),
    "no room for prompts": (
        {"b.rollout.max_completion_length": 128},
        None,
        ["stage b: ", "max_completion_length = 128", "128 positions"],
    ),
    "a character": ({}, rows_with(prompt="0x10="), ["stage b: ", "r.jsonl:3", "cannot write"]),
    "a chat template": ({"b.data.template": "chat"}, None, ["stage b: ", "no chat template"]),
    "rows of fine-tuning": (
        {"a.data.path": "FOLDER/r.jsonl"},
        None,
        ["a.data.path: ", "r.jsonl:1 has no column 'completion'"],
    ),
    "rows that are mixed in": (
        {"a.data.mix": {"gone.jsonl": 0.5}},
        None,
        ["a.data.mix = 'gone.jsonl'"],
    ),
    "rows that are too long": ({"a.learner.max_length": 4}, None, ["stage a: ", "leaves none of"]),
    "a thought's language": (
        {"+": reject(filter={"language": "xx"})},
        None,
        ["c.filter.language = 'xx'"],
    ),
    "an evaluation's file": (
        {"+": reject(filter={"decontaminate": ["gone.jsonl"]})},
        None,
        ["c.filter.decontaminate = 'gone.jsonl'"],
    ),
    "an evaluation's rows": (
        {"+": reject(filter={"decontaminate": ["FOLDER/none.jsonl"]})},
        None,
        ["c.filter.decontaminate", "none.jsonl:1 has none of the columns"],
    ),
    "a table of models": (
        {
            "+": {
                "name": "c",
                "kind": "eval",
                "models": ["stage:a", "stage:b"],
                "data": {"source": "parity", "template": "raw"},
                "rewards": [{"name": "knights"}],
            }
        },
        None,
        ["c.data: ", "no column 'roles'", "c.rewards.0 = 'knights'"],
    ),
    "a type": ({"a.model.dtype": "float16"}, None, ["stage a: ", "float16 needs an accelerator"]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@pytest.fixture(autouse=True)
def no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpo.commands.train, "_run_stage", begun)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_any_stage_is_found_before_the_first(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, rows, words = FAULTS[name]
    find, missing = importlib.util.find_spec, ("vllm", "trackio", "peft")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *more: None if n in missing else find(n, *more)
    )
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    made = recipe(folder, settings, rows)
    for look in (plan.print_plan, grpo.commands.train.train_recipe):
        with pytest.raises(GrpoError) as caught:
            look(made, QUIET)
        said = str(caught.value)
        assert all(word in said for word in words), said
        assert "\n" not in said
    assert not (folder / "run" / "resolved.json").exists()  # the corrected command may use it
