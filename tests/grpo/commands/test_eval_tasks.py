"""`grpo eval --tasks` end to end on the tiny model: tables, files, comparison, contamination."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from grpo import cli
from grpo.data import SOURCES
from grpo.data.parity import Parity
from grpo.data.prompts import TEMPLATES
from grpo.evaluation.builtin_tasks import TASKS, find_task
from grpo.evaluation.statistics import pass_at_k
from grpo.outside.code import plugins
from grpo.recipes import __file__ as recipes_file
from grpo.rewards import REWARDS
from grpo.rundir.run_folder import model_path
from grpo.types import Prompt, Task

BASE = str(Path(recipes_file).parent / "assets" / "parity-base")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six questions of the training split, one of them with an answer that is no parity."""
    source = Parity()
    tasks = [source.task("train", i) for i in range(6)]
    file = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    golds = ["2", *(task.answer for task in tasks[1:])]
    found = [{"prompt": t.prompt, "answer": gold} for t, gold in zip(tasks, golds, strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(file)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, rows: str) -> Path:
    """One evaluation of the base against a copy whose head is weaker."""
    folder = tmp_path_factory.mktemp("eval")
    other = folder / "weak" / "model"
    shutil.copytree(BASE, other)
    weights = load_file(other / "model.safetensors")
    name = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    weights[name] = weights[name] * 0.3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    held = Parity().task("heldout", 0)  # leaked into the training rows below
    train = folder / "train.jsonl"
    leaked = [{"question": held.prompt}, {"messages": [{"role": "user", "content": "hello"}]}]
    train.write_text("".join(json.dumps(row) + "\n" for row in leaked))
    words = ["eval", BASE, "--tasks", "parity,mine", "--data", f"mine={rows}", "--k", "4"]
    words += ["--limit", "10", "--max-tokens", "28", "--template", "raw", "--threads", "1"]
    words += ["--baseline", str(other), "--against", str(train), "--out", str(folder / "out")]
    assert cli.main([*words, "--temperature", "1", "--top-p", "1"]) == 0
    return folder / "out"


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def lines(out: Path, model: str, task: str) -> list[dict[str, Any]]:
    text = (out / model / f"{task}.raw.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_figures_follow_from_the_written_completions(out: Path) -> None:
    assert list(results(out)["models"]) == ["parity-base", "weak"]
    for model, tasks in results(out)["models"].items():
        for task, size in (("parity", 10), ("mine", 6)):
            figures = tasks[task]["raw"]
            answers = [x for x in lines(out, model, task) if x["mode"] == "sample"]
            assert (figures["tasks"], figures["samples"]) == (size, 4 * size)
            for reward in ("strict", "lenient"):
                right = [x["parts"][reward] for x in answers]
                assert figures["rewards"][reward]["pass1"] == pytest.approx(np.mean(right))
            per_task = np.reshape([x["parts"]["strict"] for x in answers], (size, 4)).sum(axis=1)
            solved = [pass_at_k(4, int(c), 2) for c in per_task]
            assert figures["pass_at_k"]["2"] == pytest.approx(np.mean(solved))
            greedy = [x for x in lines(out, model, task) if x["mode"] == "greedy"]
            assert figures["greedy"] == np.mean([x["parts"]["strict"] for x in greedy])
            assert figures["mean_length"] == np.mean([x["tokens"] for x in answers])


def test_votes_are_what_the_strict_verifier_reads(out: Path) -> None:
    answers = [x for x in lines(out, "parity-base", "mine") if x["mode"] == "sample"]
    for line in answers:
        said = line["completion"].partition("<answer>")[2].partition("</answer>")[0]
        assert line["vote"] == (said or None)
    assert not any(line["parts"]["strict"] for line in answers[:4])  # "2" is no parity


def test_the_models_are_compared_task_by_task(out: Path) -> None:
    found = results(out)
    for gap in found["differences"]:
        assert gap["of"] == ["parity-base", "weak"]
        pass1 = [
            found["models"][name][gap["task"]]["raw"]["rewards"][gap["reward"]]["pass1"]
            for name in gap["of"]
        ]
        assert gap["pass1"] == pytest.approx(pass1[0] - pass1[1])
        assert gap["ci"][0] <= gap["pass1"] <= gap["ci"][1]
    assert {(gap["task"], gap["reward"]) for gap in found["differences"]} == {
        (task, reward) for task in ("parity", "mine") for reward in ("strict", "lenient")
    }


def test_contamination_is_the_share_of_leaked_questions(out: Path) -> None:
    tasks = results(out)["models"]["weak"]
    assert tasks["parity"]["raw"]["contaminated"] == 0.1  # 1 of 10
    assert tasks["mine"]["raw"]["contaminated"] == 0.0


def test_the_export_reads_like_lm_evaluation_harness(out: Path) -> None:
    exported = json.loads((out / "weak" / "lm_eval_results.json").read_text())
    figures = results(out)["models"]["weak"]["parity"]["raw"]
    row = exported["results"]["parity"]
    assert row["alias"] == "parity"
    for reward in ("strict", "lenient"):
        assert row[f"exact_match,{reward}"] == figures["rewards"][reward]["pass1"]
        assert row[f"exact_match_stderr,{reward}"] > 0
    for part in ("configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert list(exported[part]) == ["parity", "mine"]
    assert exported["n-samples"]["mine"] == {"original": 6, "effective": 6}
    assert exported["configs"]["parity"]["generation_kwargs"]["max_gen_toks"] == 28


def test_the_same_command_gives_the_same_figures_and_a_table(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", BASE, "--tasks", "parity", "--k", "4", "--limit", "10", "--max-tokens", "28"]
    words += ["--temperature", "1", "--top-p", "1", "--threads", "1", "--out", str(tmp_path / "o")]
    assert cli.main(words) == 0
    again = results(tmp_path / "o")["models"]["parity-base"]["parity"]["raw"]
    before = results(out)["models"]["parity-base"]["parity"]["raw"]
    assert again == {k: v for k, v in before.items() if k != "contaminated"}
    shown = capsys.readouterr().out
    low, high = again["pass1_ci"]
    assert f"{again['pass1']:.3f} [{low:.3f}, {high:.3f}]" in shown
    for heading in ("pass@1, strict", "pass@1, lenient", "pass@4", "maj@4", "right · wrong"):
        assert heading in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--tasks", "partiy"], ["unknown task 'partiy'", "'parity'", "--data partiy="]),
        (["--tasks", "parity", "--k", "0"], ["--k", "'0'"]),
        (["--tasks", "mine", "--data", "mine=EMPTY"], ["empty.jsonl is empty"]),
        (["--tasks", "gsm8k", "--data", "gsm8k=ROWS"], ["no column 'question'"]),
        (["--tasks", "parity", "--data", "mine=ROWS"], ["task of --data 'mine'"]),
        (["--tasks", "parity", "--data", "parity=ROWS"], ["'parity'", "reads no file"]),
        (["--tasks", "parity", "--data", "ROWS"], ["TASK=FILE.jsonl"]),
        (["--tasks", "parity", "--template", "raw,char"], ["unknown template 'char'", "'chat'"]),
        (["--tasks", "parity", "--template", "chat"], ["no chat template"]),
        (["--tasks", "parity", "--max-tokens", "999"], ["--max-tokens 999", "128 positions"]),
        (["--tasks", "parity", "--temperature", "0"], ["--temperature 0"]),
        (["--tasks", "parity", "--top-p", "2"], ["--top-p 2"]),
        (["--tasks", "parity", "--engine", "tocrh"], ["unknown engine 'tocrh'", "'torch'"]),
        (["--tasks", "parity", "run.seed=1"], ["'run.seed=1'", "not both"]),
        (["--tasks", "parity", "--out", "ROWS"], ["mine.jsonl' for completions", "--out"]),
        (["--tasks", "parity", "--out", "ROWS/x"], ["mine.jsonl/x' for completions", "--out"]),
        (["--tasks", "parity", "--baseline", "EMPTY"], ["empty.jsonl' is a file"]),
        ([], ["--tasks NAME", "--recipe RECIPE"]),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str],
    expected: list[str],
    rows: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    places = {"ROWS": rows, "EMPTY": str(tmp_path / "empty.jsonl")}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    try:
        code: Any = cli.main(["eval", BASE, *words])
    except SystemExit as stopped:  # argparse
        code = stopped.code
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("grpo: error: ")
    assert said.count("\n") == 1
    for part in expected:
        assert part in said


def test_a_model_without_a_tokenizer_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(BASE) / name, tmp_path / name)
    assert cli.main(["eval", str(tmp_path), "--tasks", "parity"]) == 2
    assert "holds no tokenizer" in capsys.readouterr().err


def test_a_run_stands_for_its_last_model(tmp_path: Path) -> None:
    recipe = {
        "name": "two",
        "stages": [
            {"kind": "pretrain", "name": "base", "data": {"source": "parity"}},
            {
                "kind": "eval",
                "models": ["stage:base"],
                "data": {"source": "parity"},
                "rewards": [{"name": "accuracy"}],
            },
        ],
    }
    (tmp_path / "resolved.json").write_text(json.dumps(recipe))
    with pytest.raises(Exception, match="no trained model yet"):
        model_path(str(tmp_path))
    (tmp_path / "base" / "model").mkdir(parents=True)
    assert model_path(str(tmp_path)) == str(tmp_path / "base" / "model")
    assert model_path("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


def test_every_row_of_the_table_can_be_opened() -> None:
    for name, task in TASKS.items():
        plugins.check_args("source", task.source, SOURCES[task.source], task.args)
        if task.file_args is not None:
            given = {**task.args, **task.file_args, "path": "x"}
            plugins.check_args("source", task.source, SOURCES[task.source], given)
        for spec in task.rewards:
            plugins.check_args("reward", spec.name, REWARDS[spec.name], spec.args)
        assert task.template in ("", *TEMPLATES)
        assert [spec.title for spec in task.rewards][:1] == ["strict"], name


def test_rows_with_tests_are_programs(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "p", "tests": {"asserts": ["assert f()"]}}) + "\n")
    assert [spec.name for spec in find_task("mine", str(file)).rewards] == ["code"]


def test_instructions_follow_questions_but_not_conversations() -> None:
    from grpo.evaluation.builtin_tasks import Instructed

    class Source:
        def size(self, split: Any) -> int:
            return 2

        def task(self, split: Any, index: int) -> Task:
            talk = [{"role": "user", "content": "q"}]
            return Task(uid=str(index), prompt=talk if index else "q")

    source = Instructed(Source(), "Box it.")
    assert [source.task("heldout", i).prompt for i in range(source.size("heldout") or 0)] == [
        "q\nBox it.",
        [{"role": "user", "content": "q"}],
    ]
    assert Prompt(task=source.task("heldout", 0), text="", ids=()).task.uid == "0"
