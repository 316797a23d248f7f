"""What a run writes besides metrics.jsonl."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest

from grpo.errors import RunError
from grpo.outside.terminal.console import Console
from grpo.rundir.log import RunLog


def log(folder: Path, tracker: str) -> RunLog:
    config = {
        "name": "rl",
        "learner": {"learning_rate": 0.5, "warmup": None},
        "rewards": [{"a": 1}],
    }
    quiet = Console(quiet=True)
    return RunLog(folder, title="t", max_steps=2, trackers=[tracker], config=config, console=quiet)


def test_tensorboard_receives_metrics_and_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with log(tmp_path, "tensorboard") as running:
        running.step(1, {"reward": 0.25})
        running.step(2, {"reward": 0.75})
    events = EventAccumulator(str(tmp_path / "grpo")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.25), (2, 0.75)]
    (settings,) = (tmp_path / "grpo").rglob("hparams.yml")
    assert "learner.learning_rate: 0.5" in settings.read_text()


@pytest.mark.skipif(importlib.util.find_spec("trackio") is not None, reason="it is installed")
def test_a_tracker_that_is_not_installed_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.trackers.*'trackio'.*pip install"):
        log(tmp_path, "trackio")


def test_a_line_has_the_accuracy_of_each_verifier_beside_that_of_the_first(tmp_path: Path) -> None:
    metrics = {"accuracy/math": 0.25, "entropy": 0.5, "reward": 0.75, "accuracy": 0.375}
    metrics |= {"accuracy/code": 0.625, "completions/mean_length": 9.0}
    out = io.StringIO()
    console = Console(file=out, width=200)
    with RunLog(tmp_path, title="t", max_steps=1, console=console) as running:
        running.step(1, metrics)
    wanted = ["reward", "accuracy", "accuracy/math", "accuracy/code", "length", "entropy"]
    assert [word for word in out.getvalue().split() if word in wanted] == wanted
