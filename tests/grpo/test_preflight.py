"""What a later stage would refuse is refused before the first one starts, and by a plan."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import grpo.run
from grpo import config, finished, plan, preflight
from grpo.console import Console
from grpo.errors import GrpoError

QUIET = Console(quiet=True)
ROWS = [{"prompt": f"{n:04b}=", "answer": str(n % 2), "level": "easy"} for n in range(16)]
REWARDS = """
def level(completions, level, **kwargs): return [0.0 for _ in completions]
def typo(completion, **kwargs): return [0.0 for _ in completion]
def plain(completions, **kwargs): return [0.0 for _ in completions]
def place(completions, /): return [0.0 for _ in completions]
async def later(completions, **kwargs): return [0.0 for _ in completions]
class Scaled:
    def __init__(self, factor): self.factor = factor
    def __call__(self, completions, **kwargs): return [0.0 for _ in completions]
class Silent:
    pass
class Levels:
    def __call__(self, completions, level, **kwargs): return [0.0 for _ in completions]
def nothing(): return None
def pair(first, second): return first
class Half:
    def size(self, split): return 4
class Source(Half):
    def __init__(self): raise OSError("no connection")
    def task(self, split, index): pass
class Rows(Half):
    def task(self, split, index): return {"prompt": "01="}
class Engine:
    def __init__(self, spec): pass
    def submit(self, requests): pass
value = 3
"""


def tree(folder: Path) -> dict[str, Any]:
    """Fine-tuning, then reinforcement learning on what it leaves."""
    return {
        "name": "t",
        "run": {"dir": str(folder / "run"), "threads": 1},
        "stages": [
            {
                "name": "a",
                "kind": "sft",
                "model": {"path": "assets/parity-base"},
                "data": {"path": str(folder / "s.jsonl"), "template": "raw"},
                "learner": {"max_steps": 1},
            },
            {
                "name": "b",
                "kind": "rl",
                "model": {"path": "stage:a"},
                "data": {
                    "source": "jsonl",
                    "args": {"path": str(folder / "r.jsonl"), "heldout_fraction": 0.4},
                    "template": "raw",
                    "max_prompt_length": 32,
                },
                "rollout": {
                    "prompts_per_step": 2,
                    "num_generations": 4,
                    "max_completion_length": 12,
                },
                "rewards": [{"name": "accuracy"}],
                "learner": {"max_steps": 1},
                "eval": {"num_tasks": 4, "num_samples": 1},
            },
        ],
    }


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return str(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "r.jsonl", ROWS)
    completion = "<think>0</think><answer>0</answer>"
    write(tmp_path / "s.jsonl", [{"prompt": "0110=", "completion": completion}])
    (tmp_path / "mine.py").write_text(REWARDS)
    return tmp_path


class Started(Exception):
    """A stage has begun."""


@pytest.fixture(autouse=True)
def no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    def begun(stage: Any, *_: Any) -> None:
        raise Started(stage.name)

    monkeypatch.setattr(grpo.run, "_run_stage", begun)


def put(made: dict[str, Any], setting: str, value: Any) -> None:
    """`setting` of the stage that its first word names; a number is a place in a list."""
    name, *parts = setting.split(".")
    node: Any = next(stage for stage in made["stages"] if stage["name"] == name)
    for part in parts[:-1]:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    if isinstance(node, list):
        node[int(parts[-1])] = value
    else:
        node[parts[-1]] = value


def reject(**settings: Any) -> dict[str, Any]:
    """A third stage."""
    return {
        "name": "c",
        "kind": "reject",
        "model": {"path": "stage:b"},
        "data": {"source": "parity", "args": {"bits": 8}, "template": "raw"},
        "rollout": {"max_completion_length": 12},
        "rewards": [{"name": "accuracy"}],
        **settings,
    }


def rows_with(**changes: Any) -> list[Any]:
    """The rows, the third of them changed; a value of None takes a column away."""
    changed = {key: value for key, value in {**ROWS[2], **changes}.items() if value is not None}
    return [*ROWS[:2], changed, *ROWS[3:]]


def without(*names: str) -> list[Any]:
    return [{key: value for key, value in row.items() if key not in names} for row in ROWS]


MINE = "FOLDER/mine.py"
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
            "b.data.args": {"parts": [{"source": "jsonl", "args": {"path": "gone.jsonl"}}]},
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
    "a function's column in one row": (
        {"b.rewards.0": {"name": f"{MINE}:level"}},
        rows_with(level=None),
        ["r.jsonl:3 has no column 'level'"],
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
    "an adapter's package": ({"b.model.lora_rank": 4}, None, ["b.model.lora_rank = 4 needs peft"]),
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


def recipe(folder: Path, settings: dict[str, Any], rows: list[Any] | None) -> Any:
    if rows is not None:
        write(folder / "r.jsonl", rows)
    write(folder / "none.jsonl", [{"text": "x"}])
    (folder / "broken.py").write_text("import no_such_module_at_all\n")
    made = tree(folder)
    for setting, value in json.loads(json.dumps(settings).replace("FOLDER", str(folder))).items():
        if setting == "+":
            made["stages"].append(value)
        elif setting.startswith(("run.", "ray.")):
            section, name = setting.split(".")
            made.setdefault(section, {})[name] = value
        else:
            put(made, setting, value)
    return config.from_dict(made)


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
    for look in (plan.print_plan, grpo.run.train_recipe):
        with pytest.raises(GrpoError) as caught:
            look(made, QUIET)
        said = str(caught.value)
        assert all(word in said for word in words), said
        assert "\n" not in said
    assert not (folder / "run" / "resolved.json").exists()  # the corrected command may use it


def test_what_is_right_starts(folder: Path) -> None:
    made = recipe(folder, {}, None)
    plan.print_plan(made, QUIET)
    with pytest.raises(Started, match="a"):
        grpo.run.train_recipe(made, QUIET)


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"b.rewards.0": {"name": "format"}}, without("answer")),
        ({"b.rewards.0": {"name": f"{MINE}:plain"}}, without("answer")),
        ({"b.rewards.0": {"name": f"{MINE}:later"}}, without("answer")),  # awaited
        ({}, [{"prompt": row["prompt"], "solution": row["answer"]} for row in ROWS]),
        ({"b.data.args.answer": "gold"}, [{"prompt": r["prompt"], "gold": "1"} for r in ROWS]),
    ],
)
def test_a_column_is_asked_for_by_the_reward_that_needs_it(
    folder: Path, settings: dict[str, Any], rows: list[Any]
) -> None:
    plan.print_plan(recipe(folder, settings, rows), QUIET)


def test_a_full_disk_is_known_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 9, 1_000_000))
    made = recipe(folder, {"run.save_total_limit": 2, "run.save_steps": 1}, None)
    for look in (plan.print_plan, grpo.run.train_recipe):
        with pytest.raises(GrpoError, match=r"run\.dir = .* 1\.0 MB free.*save_total_limit = 2"):
            look(made, QUIET)


def test_fine_tuning_on_several_ranks_is_refused(folder: Path) -> None:
    made = recipe(folder, {"ray.learners": 2}, None)
    with pytest.raises(GrpoError, match="'a' fine-tunes in one process, and 2 were launched"):
        plan.print_plan(made, QUIET)


def test_a_run_that_goes_on_looks_at_what_is_still_to_come(folder: Path) -> None:
    made = recipe(folder, {}, None)
    with pytest.raises(Started):
        grpo.run.train_recipe(made, QUIET)
    run = folder / "run"
    finished.leave(run / "a", {})
    write(folder / "s.jsonl", ["no row"])  # of the stage that is done
    with pytest.raises(Started, match="b"):
        grpo.run.resume_run(run, QUIET)
    (folder / "r.jsonl").unlink()
    with pytest.raises(GrpoError, match=r"^b\.data\.args\.path = .*: there is no such file"):
        grpo.run.resume_run(run, QUIET)


def test_a_damaged_model_that_is_made_again_is_not_looked_at(folder: Path) -> None:
    made = recipe(folder, {}, None)
    damaged = folder / "run" / "a" / "model"
    damaged.mkdir(parents=True)
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(Path(made.stages[0].model.path) / name, damaged)
    preflight.check(made, folder / "run")
    with pytest.raises(GrpoError, match=r"^stage b: .*tokenizer"):
        preflight.check(made, folder / "run", ["a"])


def test_a_wrong_path_is_said_before_torch_is_loaded(folder: Path) -> None:
    made = tree(folder)
    put(made, "b.data.args.path", str(folder / "gone.jsonl"))
    (folder / "t.yaml").write_text(json.dumps(made))
    script = (
        "import sys; from grpo import cli; code = cli.main(['VERB', 't.yaml']); "
        "sys.exit(code if 'torch' not in sys.modules else 'torch is loaded')"
    )
    for verb in ("train", "plan"):
        command = [sys.executable, "-c", script.replace("VERB", verb)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, "b.data.args.path" in done.stderr) == (2, True), done.stderr


def test_a_plan_begins_before_models_are_looked_at(folder: Path, capsys: Any) -> None:
    plan.print_plan(recipe(folder, {}, None))
    said = capsys.readouterr()
    assert said.out.startswith("t -> ")
    assert said.err == ""  # no bars of libraries
