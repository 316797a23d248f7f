"""Prompts that leave no room for a completion: found at the start, and treated as overlong says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.commands import plan
from grpo.commands.train import train_recipe
from grpo.config.config import from_dict
from grpo.data.mixture import Mixture
from grpo.data.prompts import PromptTemplate
from grpo.data.table import file
from grpo.errors import DataError, RecipeError
from grpo.outside.terminal.console import Console
from grpo.stages.from_scratch import build_tokenizer
from grpo.stages.lengths import overlong, said
from grpo.types import Task
from tests.grpo.tiny_bases import save_tiny_base

LONG = "abcdefgh" * 7  # 56 tokens, of a model with 64 positions


def tokenizer() -> Any:
    return build_tokenizer("abcdefgh")


def template(**settings: Any) -> PromptTemplate:
    """For 20 positions and completions of 12 tokens: 8 are left."""
    return PromptTemplate("raw", tokenizer(), **{"positions": 20, "completion": 12, **settings})


def asked(text: str, **columns: Any) -> Task:
    return Task(uid="t", prompt=text, columns=columns, place="rows.jsonl:7")


def test_a_prompt_has_as_many_tokens_as_a_completion_leaves() -> None:
    prompts = template()
    assert prompts.limit()[0] == 8
    assert prompts.render(asked("abcdefgh")) is not None
    assert prompts.render(asked("abcdefgha")) is None
    assert prompts.counts == {"rendered": 1, "dropped": 1, "truncated": 0}
    cut = template(overlong="truncate").render(asked("abcdefghab"))
    assert cut is not None
    assert cut.text == "cdefghab"
    with pytest.raises(DataError, match=r"^rows\.jsonl:7: the prompt has 9 tokens, more"):
        template(overlong="error").render(asked("abcdefgha"))


def test_the_smaller_of_two_limits_holds_and_is_named() -> None:
    assert template(max_prompt_length=5).limit() == (5, "data.max_prompt_length=5")
    assert template(max_prompt_length=9).limit()[0] == 8
    assert template(positions=None, max_prompt_length=None).limit()[0] is None


def test_a_task_with_shorter_completions_has_more_room() -> None:
    short = {"rollout": {"max_completion_length": 4}}
    assert template().render(asked("abcdefgha", **short)) is not None
    longer = {"rollout": {"max_completion_length": 400}}  # a length only ever shortens
    assert template().limit(asked("a", **longer))[0] == 8


def write(file: Path, prompts: list[str]) -> str:
    rows = [{"prompt": prompt, "answer": "1"} for prompt in prompts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_long_prompts_are_counted_without_putting_short_ones_into_tokens(tmp_path: Path) -> None:
    rows = ["a" * n for n in range(1, 31)]
    source = file(path=write(tmp_path / "r.jsonl", rows), heldout_fraction=0.0)
    prompts = template(positions=32)  # 20 are left
    found = overlong(source, prompts)
    # 21 to 30 are too long; beside them those within the special tokens' allowance are looked at
    assert (found.tasks, found.found, found.every) == (30, 10, True)
    assert found.looked == 18
    assert prompts.counts == {"rendered": 0, "dropped": 0, "truncated": 0}
    (sentence,) = said(found, prompts)
    assert sentence.startswith("10 of 30 training prompts are longer than the 20 tokens that max")
    assert sentence.endswith("leaves of the model's 32 positions: left out")
    assert said(overlong(source, template(positions=None)), prompts) == ()


def test_parts_of_a_mixture_are_counted_by_their_own_lengths(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ["abcdefgha", "a", "b"])
    part = {"source": "file", "args": {"path": path, "heldout_fraction": 0.0}}
    source = Mixture([{**part, "name": "one"}, {**part, "name": "two", "max_completion_length": 4}])
    assert overlong(source, template()).found == 1


def test_where_none_fits_the_lengths_that_would_are_said(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ["a" * 9, "b" * 12])
    source = file(path=path, heldout_fraction=0.0)
    with pytest.raises(RecipeError, match=r"max_completion_length = 12 .*takes 9; valid: 1 to 11"):
        overlong(source, template())
    with pytest.raises(DataError, match=r"data\.max_prompt_length=4, the shortest has 9 tokens"):
        overlong(source, template(max_prompt_length=4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def recipe(base: str, folder: Path, *settings: str) -> Any:
    """Eight training rows, one of them too long for the positions, which four steps all meet."""
    write(folder / "heldout.jsonl", ["h"])
    rows = [f"{a}b" for a in "abcdefg"]
    tree = {
        "name": "t",
        "run": {"dir": str(folder / "run"), "threads": 1},
        "model": {"path": base},
        "data": {
            "source": "file",
            "args": {
                "path": write(folder / "r.jsonl", [*rows, LONG]),
                "heldout_path": str(folder / "heldout.jsonl"),
            },
            "template": "raw",
            "max_prompt_length": 64,
        },
        "rollout": {"prompts_per_step": 2, "num_generations": 2, "max_completion_length": 12},
        "rewards": [{"name": "random"}],
        "learner": {"max_steps": 4},
        "eval": {"num_tasks": 9, "num_samples": 1},
    }
    return from_dict(tree, settings)


def test_a_run_says_what_it_leaves_out_and_never_meets_it(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_recipe(recipe(base, tmp_path), Console(force_terminal=False, width=200))
    said = capsys.readouterr().out
    assert "1 of 8 training prompts is longer than the 52 tokens that max_completion_length" in said
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert sum(line["prompts/dropped"] for line in lines) >= 1


def test_a_plan_refuses_the_row_where_that_is_asked_for(base: str, tmp_path: Path) -> None:
    made = recipe(base, tmp_path, "data.overlong=error")
    with pytest.raises(DataError, match=r"r\.jsonl:8: the prompt has 56 tokens, more than the 52"):
        plan.print_plan(made, Console(quiet=True))


def test_a_plan_counts_the_held_out_tasks_there_are(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.print_plan(recipe(base, tmp_path, "run.save_steps=0"), Console(width=200))
    said = capsys.readouterr().out
    assert "1 tasks x (1 greedy + 1 samples)" in said
    assert "checkpoints" in said
    assert "after the last step" in said
    assert "every 4 steps" not in said
