"""Runs that leave evaluations out, and models that are compared afterwards, with a function."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from grpo import cli
from grpo.commands import show
from grpo.commands.eval_recipe import compare_model, evaluate_models, started_from
from grpo.commands.plan import print_plan
from grpo.commands.train import train_recipe
from grpo.config.config import from_dict
from grpo.errors import DataError, GrpoError, RecipeError
from grpo.outside.terminal.console import Console
from grpo.rundir.run_folder import recipe_of
from tests.grpo.rundir.interrupted import QUIET, ROWS, prepared, resumed, rl, stopped, write

SMALL = {"num_tasks": 3, "num_samples": 2}
NONE = {"num_tasks": 0}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, rows and a reward."""
    return prepared(tmp_path, monkeypatch)


def trained(place: Path, name: str, **sections: Any) -> tuple[Path, str]:
    """The folder of a finished run, and what it printed."""
    said = Console(file=io.StringIO(), width=160)
    train_recipe(from_dict(rl(place, name, at=0, **sections)), said)
    return place / name, said.file.getvalue()  # type: ignore[attr-defined]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def shown(run: Path) -> str:
    console = Console(file=io.StringIO(), width=160)
    show.print_run(run, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def without_heldout(place: Path) -> dict[str, Any]:
    data = rl(place)["data"]
    return {**data, "args": {**data["args"], "heldout_fraction": 0}}


def test_weights_do_not_depend_on_evaluations(place: Path) -> None:
    whole, said = trained(place, "whole", eval={**SMALL, "steps": 2})
    assert "greedy mean reward" in said
    for word in ("accuracy", "pass@"):
        assert word not in said  # the reward is a function
    late, said = trained(place, "late", eval={**SMALL, "before": False})
    never, silent = trained(place, "never", eval=NONE)
    assert weights(whole) == weights(late) == weights(never)
    assert "before:" not in said
    assert summary(late)["after"] == summary(whole)["after"]
    for run, measured in ((late, {"after"}), (never, set())):
        found = summary(run)
        unmeasured = {"before", "after", "gain", "paired"} - measured
        assert {name for name in found if found[name] is None} == unmeasured
        assert {file.stem for file in (run / "eval").glob("*.jsonl")} == measured
    hint = f"(eval.num_tasks = 0); to measure before and after: grpo eval {never} --baseline"
    assert hint in silent
    assert hint in shown(never)
    assert f"grpo eval {late} --baseline" in shown(late)


def test_a_source_without_heldout_tasks_trains_and_resumes(place: Path) -> None:
    data = without_heldout(place)
    with pytest.raises(DataError, match="no held-out tasks"):
        trained(place, "refused", data=data)
    # the gate, which asks held-out prompts otherwise, asks training ones
    whole, _ = trained(place, "whole", data=data, eval=NONE)
    steps = (whole / "metrics.jsonl").read_text().splitlines()
    assert "agreement/difference_mean" in json.loads(steps[0])
    run = stopped(place, data=data, eval=NONE)
    resumed(run)
    assert weights(run) == weights(whole)
    out = Console(file=io.StringIO(), width=160)
    print_plan(from_dict(rl(place, "plan", data=data, eval=NONE)), out)
    assert "eval.num_tasks = 0: none" in out.file.getvalue()  # type: ignore[attr-defined]


def test_a_resumed_run_is_not_evaluated_before_either(place: Path) -> None:
    whole, _ = trained(place, "whole", eval={**SMALL, "before": False})
    run = stopped(place, eval={**SMALL, "before": False})
    resumed(run)
    assert weights(run) == weights(whole)
    assert summary(run)["before"] is None
    assert summary(run)["after"] == summary(whole)["after"]


def test_the_best_model_is_kept_without_an_evaluation_before(place: Path) -> None:
    settings = {**SMALL, "before": False, "steps": 2, "keep_best": True}
    often = {**rl(place, "best")["run"], "save_steps": 1}  # also before there is a best one
    run, _ = trained(place, "best", eval=settings, run=often)
    found = summary(run)
    assert found["best"]["step"] in (2, 4)
    assert found["result"].startswith("reward: mean ")
    assert "->" not in found["result"]
    assert found["result"].endswith(f"at step {found['best']['step']}, the best of 2 evaluations")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"steps": 2},
            r"eval.steps = 2 needs held-out tasks, and eval.num_tasks = 0 asks for none",
        ),
        ({"steps": 2, "keep_best": True}, r"eval.keep_best = True needs held-out tasks"),
    ],
)
def test_settings_that_need_heldout_tasks_are_refused(
    place: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        from_dict(rl(place, eval={**NONE, **settings}))


def test_a_run_compared_afterwards_has_the_table_of_its_end(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = trained(place, "whole", eval=SMALL)
    late, _ = trained(place, "late", eval={**SMALL, "before": False})
    assert started_from(str(late)) == str(place / "base")
    assert cli.main(["eval", str(late), "--baseline", "eval.num_samples=2"]) == 0
    found = json.loads((late / "eval" / "comparison.json").read_text())
    assert found["paired"]["model"] == summary(whole)["paired"]
    assert found["paths"]["baseline"] == str(place / "base")
    said = capsys.readouterr().out
    assert "difference [95% interval]" in said
    assert "accuracy" not in said
    for name in ("before", "after"):
        other = {"before": "baseline", "after": "model"}[name]
        mine = (late / "eval" / f"{other}.jsonl").read_bytes()
        assert mine == (whole / "eval" / f"{name}.jsonl").read_bytes()


def test_several_models_are_compared_with_one(place: Path) -> None:
    run, _ = trained(place, "run", eval=NONE)
    recipe = from_dict(rl(place, "x", eval=SMALL))
    models = [str(run), str(place / "base")]
    found = evaluate_models(
        models,
        recipe.stages[0],  # type: ignore[arg-type]
        recipe,
        baseline=str(place / "base"),
        out=place / "out",
        console=QUIET,
    )
    assert (found["baseline"], list(found["models"])) == ("base", ["run", "base"])
    assert list(found["paired"]) == ["run"]
    for name, file in found["completions"].items():
        lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
        sampled = [line["value"] for line in lines if line["mode"] == "sample"]
        assert len(sampled) == 6
        mean = found["models"][name]["rewards"]["reward"]["mean"]
        assert mean == pytest.approx(sum(sampled) / len(sampled))
    gap = next(row for row in found["paired"]["run"] if row["figure"] == "mean reward")
    assert gap["difference"] == pytest.approx(gap["after"] - gap["before"], abs=1e-6)


def test_what_cannot_be_compared_is_one_sentence(place: Path) -> None:
    run, _ = trained(place, "run", eval=NONE)
    recipe = recipe_of(run)
    with pytest.raises(RecipeError, match=r"say eval\.num_tasks=200"):
        compare_model(run, recipe, "")
    recipe = from_dict(rl(place, "x", eval=SMALL))
    with pytest.raises(GrpoError, match="baseline = '/no/such': there is no such folder"):
        compare_model(run, recipe, "/no/such")
    with pytest.raises(RecipeError, match="is the model itself"):
        compare_model(place / "base", recipe, "")
    with pytest.raises(RecipeError, match="not the folder of such a run; write --baseline MODEL"):
        started_from(str(place / "base"))


def test_rows_of_ones_own_are_judged_by_a_function(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = place / "rows.jsonl"
    write(rows, ROWS[:4])
    mine, out = f"{place / 'mine.py'}:reward", place / "out"
    words = ["eval", str(place / "base"), "--data", str(rows), "--rewards", mine, "--k", "2"]
    words += ["--max-tokens", "6", "--template", "raw", "--threads", "1", "--out", str(out)]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "rows: 4 tasks, 2 completions each" in said
    assert "mean reward" in said
    for word in ("accuracy", "pass@", "maj@", "right · wrong"):
        assert word not in said
    lines = [json.loads(x) for x in (out / "base" / "rows.raw.jsonl").read_text().splitlines()]
    assert {line["prompt"] for line in lines} == {row["prompt"] for row in ROWS[:4]}
    counted = [line["completion"].count("a") % 3 for line in lines if line["mode"] == "sample"]
    exported = json.loads((out / "base" / "lm_eval_results.json").read_text())
    assert exported["results"]["rows"]["mean,reward"] == pytest.approx(sum(counted) / 8)
    assert exported["higher_is_better"]["rows"] == {"mean": True}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data", "gsm8k.jsonl"], "'gsm8k' is a built-in task. For its published columns write"),
        (["--data", "r.jsonl", "--rewards", "a.py:f,b.py:f"], "has the name 'f' twice"),
        (["--tasks", "parity", "--data", "r.jsonl"], "--data takes TASK=FILE.jsonl with --tasks"),
        (["--rewards", "a.py:f"], "--data FILE --rewards NAME"),
        (["--data", "r.jsonl", "--baseline"], "write --baseline MODEL"),
    ],
)
def test_rows_that_cannot_be_asked_are_one_sentence(
    place: Path,
    words: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    write(place / "r.jsonl", ROWS[:2])
    assert cli.main(["eval", str(place / "base"), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
