"""A recipe of two stages to break, for the tests of what is found before the first one starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo.config import config
from grpo.outside.terminal.console import Console

QUIET = Console(quiet=True)
ROWS = [{"prompt": f"{n:04b}=", "answer": str(n % 2), "level": "easy"} for n in range(16)]
REWARDS = """
from grpo.method.objective import Objective
from grpo.method.table import OBJECTIVES
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
def shifted(rewards_P_G, shift, groups): return rewards_P_G - shift
columned = Objective(token_loss=pair, columns=nothing)
capped = OBJECTIVES["cispo"]
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
                    "source": "file",
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


def write_files(folder: Path) -> Path:
    """What the recipe reads: tasks, rows, plug-ins; the folder."""
    write(folder / "r.jsonl", ROWS)
    completion = "<think>0</think><answer>0</answer>"
    write(folder / "s.jsonl", [{"prompt": "0110=", "completion": completion}])
    (folder / "mine.py").write_text(REWARDS)
    return folder


class Started(Exception):
    """A stage has begun."""


def begun(stage: Any, *_: Any) -> None:
    """In place of running a stage."""
    raise Started(stage.name)
