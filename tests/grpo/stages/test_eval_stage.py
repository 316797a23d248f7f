"""The eval stage: two models on the same tasks with the same noise, resumed, and as a table."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from grpo.commands.summary import print_models
from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict
from grpo.errors import EngineError, RecipeError, RunError
from grpo.evaluation import tally
from grpo.outside.terminal.console import Console
from grpo.recipes import __file__ as recipes_file
from grpo.stages import eval as stage

BASE = str(Path(recipes_file).parent / "assets" / "parity-base")
REWARD = '''
def starts_with_one(prompts, completions, **_):
    """Length of the thought where the question starts with 1, else not applicable."""
    thoughts = [c.partition("</think>")[0].removeprefix("<think>") for c in completions]
    return [float(len(t)) if p[0] == "1" else None for p, t in zip(prompts, thoughts)]
'''


def recipe(folder: Path, models: list[str], **settings: Any) -> dict[str, Any]:
    (folder / "mine.py").write_text(REWARD)
    return {
        "name": "side-by-side",
        "run": {"dir": str(folder / "run"), "threads": 1, "seed": 3},
        "stages": [
            {
                "kind": "eval",
                "name": "final",
                "models": models,
                "data": {"source": "parity", "template": "raw", "max_prompt_length": 32},
                "rewards": [
                    {"name": "accuracy"},
                    {"name": f"{folder / 'mine.py'}:starts_with_one", "label": "thought"},
                ],
                "num_tasks": 12,
                "num_samples": 4,
                "max_completion_length": 28,
                **settings,
            }
        ],
    }


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model like the base, but for a head that prefers no token."""
    folder = tmp_path_factory.mktemp("worse") / "model"
    shutil.copytree(BASE, folder)
    weights = load_file(folder / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    weights[name] = weights[name] * 0.2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, other: str) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(BASE, folder / "same")
    models = [BASE, other, str(folder / "same")]
    settings = recipe(folder, models, baseline=other)
    train_recipe(from_dict(settings), Console(quiet=True))
    return folder / "run"


def sampled(run: Path, name: str) -> list[dict[str, Any]]:
    lines = (run / "eval" / f"{name}.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["mode"] == "sample"]


def test_figures_are_those_of_the_written_completions(finished: Path, other: str) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    worse = Path(other).parent.name
    assert list(summary["models"]) == ["parity-base", worse, "same"]
    for name, row in summary["models"].items():
        lines = sampled(finished, name)
        assert len(lines) == 12 * 4
        right = [line["parts"]["accuracy"] for line in lines]
        value, low, high = row["accuracy"]
        assert value == pytest.approx(np.mean(right))
        assert low <= value <= high
        assert row["length"][0] == pytest.approx(np.mean([line["tokens"] for line in lines]))
        assert row["truncated"] == np.mean([line["finish"] == "length" for line in lines])
        applied = [len(t) for p, t in map(thought, lines) if p[0] == "1"]
        assert 0 < len(applied) < len(lines)
        assert row["thought"][0] == pytest.approx(np.mean(applied))
        assert summary["not_applicable"][name] == {"thought": len(lines) - len(applied)}
    assert summary["models"][worse]["truncated"] > 0
    assert summary["result"].startswith("accuracy: parity-base 0.")


def thought(line: dict[str, Any]) -> tuple[str, str]:
    return line["prompt"], line["completion"].partition("</think>")[0].removeprefix("<think>")


def test_the_same_noise_pairs_the_models(finished: Path, other: str) -> None:
    models = json.loads((finished / "summary.json").read_text())["models"]
    worse = Path(other).parent.name
    assert "difference" not in models[worse]  # the baseline
    assert sampled(finished, "same") == sampled(finished, "parity-base")
    assert models["same"] == models["parity-base"]
    gap, low, high = models["same"]["difference"]
    assert gap == pytest.approx(models["same"]["accuracy"][0] - models[worse]["accuracy"][0])
    assert low < gap < high


def test_a_finished_model_is_not_asked_again(
    finished: Path, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    (run / "eval" / "same.jsonl").unlink()
    damaged = run / "eval" / f"{Path(other).parent.name}.jsonl"
    damaged.write_text(damaged.read_text().replace("<think>", "<thank>", 1))
    asked: list[str] = []
    build = stage.build_sampler
    monkeypatch.setattr(
        stage, "build_sampler", lambda **k: asked.append(k["model"].path) or build(**k)
    )
    after = resume_run(run, Console(quiet=True))
    same = asked[-1]
    assert asked == [other, same]
    assert Path(same).name == "same"
    assert after["models"] == before["models"]
    # weights that changed since are another model
    (run / "summary.json").unlink()
    weights = load_file(Path(same) / "model.safetensors")
    save_file(weights, Path(same) / "model.safetensors", {"format": "pt", "more": ""})
    with pytest.raises(RunError, match=r"models\.2 = .*model\.safetensors changed"):
        resume_run(run, Console(quiet=True))
    resume_run(run, Console(quiet=True), accept_changes=True)
    assert asked[2:].count(same) == 1


def test_names_of_models() -> None:
    assert stage.model_names(["/r/zero/model", "/r/cold/model", "Qwen/Qwen2.5-0.5B"]) == [
        "zero",
        "cold",
        "Qwen2.5-0.5B",
    ]
    assert stage.model_names(["/a/rl/model", "/b/rl/model", "/c/rl"]) == ["rl", "rl-2", "rl-3"]


def test_the_table_turns_when_it_is_too_wide(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    first = "{:.3f} [{:.3f}, {:.3f}]".format(*summary["models"]["same"]["accuracy"])
    for width, rows in ((200, ["same"]), (90, ["accuracy", "length", "thought"])):
        out = io.StringIO()
        print_models(summary, Console(file=out, width=width, highlight=False))
        shown = out.getvalue()
        assert first in shown
        starts = [line.strip("│┃ ").split(" ")[0] for line in shown.splitlines()]
        assert set(rows) <= set(starts)
        assert "of 48 completions: thought to" in shown
        last = list(summary["models"])[-1]
        assert f"{last} beside {summary['baseline']}" in " ".join(shown.split())
    # the rows of the paired table are of every model, the same figure as in the first table
    assert list(summary["paired"]) == [n for n in summary["models"] if n != summary["baseline"]]
    for name, table in summary["paired"].items():
        row = next(row for row in table if row["figure"] == "pass@1")
        value, low, high = summary["models"][name]["difference"]
        assert row["difference"] == pytest.approx(value, abs=1e-6)
        assert row["ci"] == pytest.approx([low, high], abs=1e-6)
        assert any(row["figure"] == "mean thought" for row in table)


def test_a_model_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = from_dict(recipe(tmp_path, [str(tmp_path / "empty")]))
    with pytest.raises(RecipeError, match="is an empty folder"):
        train_recipe(settings, Console(quiet=True))


def test_rewards_that_would_share_a_column_are_refused(tmp_path: Path) -> None:
    names = ["accuracy", "format", "format"]
    settings = recipe(tmp_path, [BASE], rewards=[{"name": name} for name in names])
    with pytest.raises(
        RecipeError, match=r"rewards\.2 has the name 'format' of rewards\.1; .*label"
    ):
        from_dict(settings)


def test_answers_are_not_joined_by_those_to_other_questions(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails after its first model is a run: it goes on, or another folder is named."""
    build = stage.build_sampler

    def fails(**of: Any) -> Any:
        if of["model"].path == other:
            raise EngineError("gone")
        return build(**of)

    settings = recipe(tmp_path, [BASE, other])
    monkeypatch.setattr(stage, "build_sampler", fails)
    with pytest.raises(EngineError):
        train_recipe(from_dict(settings), Console(quiet=True))
    monkeypatch.setattr(stage, "build_sampler", build)
    settings["stages"][0]["num_samples"] = 2
    with pytest.raises(RunError, match="already holds a run; continue it with"):
        train_recipe(from_dict(settings), Console(quiet=True))
    models = resume_run(tmp_path / "run", Console(quiet=True))["details"]
    assert [found["samples"] for found in models.values()] == [48, 48]


def test_a_reward_named_like_a_column_of_the_table_has_one_of_its_own() -> None:
    lines = [
        {
            **{"mode": mode, "task": "t", "cluster": "t", "sample": 0, "completion": "x"},
            **{"tokens": 7, "finish": "stop", "value": 2.5, "status": "scored", "right": {}},
            "parts": {"length": 2.0, "accuracy": 0.5},
        }
        for mode in ("greedy", "sample")
    ]
    row = tally.columns(lines, ["length", "accuracy"], seed=0)
    assert row["reward length"] == [2.0, 2.0, 2.0]
    assert row["reward accuracy"] == [0.5, 0.5, 0.5]  # said by no verifier
    assert row["length"] == [7.0, 7.0, 7.0]
    assert "accuracy" not in row
