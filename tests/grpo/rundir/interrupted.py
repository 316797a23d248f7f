"""A run that was interrupted after its second step, for the tests of going on with one."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.outside.terminal.console import Console
from tests.grpo.tiny_bases import save_tiny_base

QUIET = Console(quiet=True)
ROWS = [{"prompt": "abcdefgh"[i % 8] * (i // 8 + 1), "answer": "a", "n": i} for i in range(24)]
PLUGIN = """
import os, signal
import torch
from helper import value

def reward(completions, answer, **_):
    # tens say which answer the row had
    return [value(c) + 10.0 * (ord(a) - 97) for c, a in zip(completions, answer, strict=True)]

class Stop:
    def __init__(self, at, log=None):
        self.at, self.log = at, log

    def __call__(self, step):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{step.step} {torch.get_num_threads()}\\n")
        if step.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)
"""
HELPER = "def value(text):\n    return text.count('a') % 3\n"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def filled(folder: Path) -> Path:
    """A folder with a model, rows and a reward."""
    save_tiny_base(folder / "base", max_position=32)
    write(folder / "d.jsonl", ROWS)
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "helper.py").write_text(HELPER)
    return folder


def prepared(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Such a folder, whose modules can be imported."""
    patch.syspath_prepend(folder)
    patch.delitem(sys.modules, "helper", raising=False)
    return filled(folder)


def rl(place: Path, name: str = "run", at: int = 2, **sections: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "run": {"dir": str(place / name), "threads": 1, "save_steps": 0, "seed": 5},
        "model": {"path": str(place / "base")},
        "data": {
            "source": "file",
            "args": {"path": str(place / "d.jsonl"), "heldout_fraction": 0.3},
            "template": "raw",
            "max_prompt_length": 8,
        },
        "rollout": {"prompts_per_step": 2, "num_generations": 4, "max_completion_length": 6},
        "schedule": {"mode": "one_step_off"},
        "rewards": [{"name": f"{place / 'mine.py'}:reward"}],
        "learner": {"max_steps": 4, "learning_rate": 1e-3},
        "eval": {"num_tasks": 3, "num_samples": 2},
        "callbacks": [{"name": f"{place / 'mine.py'}:Stop", "args": {"at": at}}],
        **sections,
    }


def stopped(place: Path, **sections: Any) -> Path:
    """The folder of a run that was interrupted after its second step."""
    with pytest.raises(KeyboardInterrupt, match="saved at step 2"):
        train_recipe(from_dict(rl(place, **sections)), QUIET)
    return place / "run"


def resumed(run: Path, **options: Any) -> str:
    """What a resume says."""
    said = Console(file=io.StringIO(), width=10_000)
    resume_run(run, said, **options)
    return said.file.getvalue()  # type: ignore[attr-defined]
