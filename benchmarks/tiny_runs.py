"""Runs of seconds, one of every kind of stage, in processes that are cheap to start and to kill.

The parent has every library loaded and no thread of its own; a run is a fork of it.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - loaded once, for all forks
import trl.trainer.sft_trainer  # noqa: F401
from transformers import AutoModelForCausalLM

from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.config.schema.pretrain import PretrainLearner, PretrainModel
from grpo.data import SOURCES
from grpo.errors import GrpoError
from grpo.outside.terminal.console import Console
from grpo.rundir.log import RunLog
from grpo.stages import distill, eval, pretrain, reject, rl, sft  # noqa: F401

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 64,
}
TASKS: dict[str, Any] = {
    "data": {
        "source": "parity",
        "args": {"bits": 4},
        "template": "raw",
        "max_prompt_length": 16,
    },
    "rollout": {"prompts_per_step": 4, "num_generations": 4, "max_completion_length": 16},
    "rewards": [{"name": "accuracy"}, {"name": "format", "weight": 0.1}],
}
TIMED = ("time", "step_time", "seconds", "tokens_per_second", "learner/tokens_per_second")
FIGURES = ("before", "after", "during", "gain", "best", "steps", "rows", "loss", "tokens", "models")


def make_base(folder: Path) -> None:
    """What the runs start from: a model that knows a little, and rows to learn from."""
    pretrain.pretrain(
        SOURCES["parity"](bits=4, long_fraction=0.5),
        out_dir=str(folder / "base"),
        model=PretrainModel(max_position=64, num_kv_heads=2, **SMALL),
        learner=PretrainLearner(max_steps=150, batch_size=64, learning_rate=3e-3),
    )
    rows = [{"prompt": f"{i:04b}=", "completion": f"<think>{i:04b}</think>"} for i in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def warm(place: Path) -> None:
    """What every run does once, done before the forks: a model is loaded, and garbage forgotten."""
    torch.set_num_threads(1)  # a fork has no threads but its own
    AutoModelForCausalLM.from_pretrained(place / "base")
    import grpo.rollout.embedded.cpu.fused  # noqa: F401

    gc.collect()
    gc.freeze()


def _rl(model: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": "rl",
        "name": "rl",
        "model": {"path": model},
        **TASKS,
        "learner": {"max_steps": 6, "learning_rate": 1e-3},
        "eval": {"num_tasks": 4, "num_samples": 2, "steps": 2},
        **more,
    }


def kinds(place: Path) -> dict[str, list[dict[str, Any]]]:
    """The stages of each kind of run, over what `make_base` left in `place`."""
    base, rows = str(place / "base"), str(place / "rows.jsonl")
    sampled = {**TASKS, "filter": {"num_tasks": 12, "min_reward": 0.05, "keep": 2}}
    best = {"eval": {"num_tasks": 4, "num_samples": 2, "steps": 2, "keep_best": True}}
    learner = {"batch_size": 4, "max_steps": 6, "learning_rate": 1e-3}
    first = {
        "kind": "pretrain",
        "name": "first",
        "model": {**SMALL, "max_position": 64},
        "data": {"source": "parity", "args": {"bits": 4}},
        "learner": {"max_steps": 4, "batch_size": 16},
    }
    tuned = {
        "kind": "sft",
        "name": "tuned",
        "model": {"path": base},
        "data": {"path": rows},
        "learner": learner,
    }
    kept = {"kind": "reject", "name": "kept", "model": {"path": base}, **sampled}
    student = {
        "kind": "distill",
        "name": "student",
        "model": {"path": base},
        "teacher": {"path": base},
        "learner": learner,
        **sampled,
    }
    asked = {
        "kind": "eval",
        "name": "asked",
        "models": ["stage:tuned", base],
        **{key: TASKS[key] for key in ("data", "rewards")},
        "num_tasks": 4,
        "num_samples": 2,
        "max_completion_length": 16,
    }
    ahead = {"schedule": {"mode": "one_step_off"}}
    return {
        "rl": [_rl(base)],
        "rl, best kept": [_rl(base, **best)],
        "rl, adapter, one step off": [_rl(base, **ahead) | {"model": _adapter(base)}],
        "sft": [tuned],
        "pretrain": [first],
        "reject": [kept],
        "distill": [student],
        "pretrain, sft, rl": [
            first,
            tuned | {"model": {"path": "stage:first"}},
            _rl("stage:tuned"),
        ],
        "reject, sft, eval": [kept, tuned | {"data": {"path": "stage:kept"}}, asked],
    }


def _adapter(base: str) -> dict[str, Any]:
    return {"path": base, "lora": {"rank": 2}}


def recipe(stages: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """A recipe of these stages whose run is `folder`."""
    run = {"dir": str(folder), "threads": 1, "save_steps": 2, "seed": 5}
    return {"name": "tiny", "run": run, "stages": stages}


def ended(act: Callable[[Console], Any], patience: float = 120.0) -> tuple[str, str]:
    """Run `act` in a fork: (how it ended, what it said).

    done; refused (what it said is the sentence); failed (the traceback); killed; hangs.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(act, writing)
    os.close(writing)
    try:
        content = _read(reading, patience)
    finally:
        os.close(reading)
    if content is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hangs", f"for {patience:g} s"
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed", content
    how, _, said = content.partition("\n")
    return how, said


def start(act: Callable[[Console], Any]) -> int:
    """The id of a fork that runs `act`, and that nobody listens to."""
    child = os.fork()
    if child == 0:
        _child(act, os.open(os.devnull, os.O_WRONLY))
    return child


def _child(act: Callable[[Console], Any], writing: int) -> None:
    shown = io.StringIO()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        torch.set_num_threads(1)
        act(Console(file=shown, highlight=False, width=500))
        answer = f"done\n{shown.getvalue()}"
    except GrpoError as error:
        answer = f"refused\n{error}"
    except BaseException:
        answer = f"failed\n{traceback.format_exc()}"
    os.write(writing, answer[-60_000:].encode())  # less than a pipe holds
    os._exit(0)


def _read(reading: int, patience: float) -> str | None:
    """All that comes until the other end is closed; None where that takes too long."""
    os.set_blocking(reading, False)
    content, until = b"", time.monotonic() + patience
    while time.monotonic() < until:
        try:
            block = os.read(reading, 1 << 16)
        except BlockingIOError:
            time.sleep(0.01)
            continue
        if not block:
            return content.decode(errors="replace")
        content += block
    return None


def train(stages: list[dict[str, Any]], folder: Path) -> Callable[[Console], Any]:
    """For `ended` and `start`: the whole run."""
    return lambda console: train_recipe(from_dict(recipe(stages, folder)), console)


def train_until(stages: list[dict[str, Any]], folder: Path, steps: int) -> Callable[..., Any]:
    """The same, killed after so many lines of metrics, of whichever stage."""
    write, left = RunLog.step, [steps]

    def step(self: RunLog, *arguments: Any) -> None:
        write(self, *arguments)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    def act(console: Console) -> None:
        RunLog.step = step
        train_recipe(from_dict(recipe(stages, folder)), console)

    return act


def resume(folder: Path) -> Callable[[Console], Any]:
    """For `ended` and `start`: the rest of a run."""
    return lambda console: resume_run(folder, console)


def facts(run: Path) -> dict[str, str]:
    """Hash of everything that a run leaves and no clock decides, by name."""
    found: dict[str, str] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        parts = name.split("/")
        if not path.is_file() or "checkpoints" in parts or "replaced" in parts:
            continue
        if path.name == "metrics.jsonl":
            lines = path.read_text(encoding="utf-8", errors="replace").strip("\n").split("\n")
            content = "\n".join(map(_steady, lines)).encode()
        elif path.name == "summary.json":
            known = json.loads(path.read_text())
            figures = [known.get(key) for key in FIGURES]
            content = json.dumps(figures, sort_keys=True).encode()
        elif parts[-2:-1] in (["model"], ["data"], ["eval"], ["ledger"], ["shards"]):
            content = path.read_bytes()
        else:
            continue
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _steady(line: str) -> str:
    try:
        known = json.loads(line)
    except ValueError:
        return line
    kept = {k: v for k, v in known.items() if k not in TIMED}
    return json.dumps({k: v for k, v in kept.items() if not k.startswith(("time/", "schedule/"))})
