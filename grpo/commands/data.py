"""`grpo data FILE`: what is in rows: columns, lengths, duplicates, contradictions, contamination.

    grpo data train.jsonl --model models/smollm2-135m-instruct --heldout test.jsonl

Rows are those of a file, a folder or a pattern; or, with `--recipe`, of a recipe's last stage that
has tasks.
"""

from __future__ import annotations

import json as json_format
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rich.table import Table

from grpo.commands.options import check_form, given
from grpo.config import config
from grpo.config.schema import RLStage
from grpo.data.files import Placed, read_rows
from grpo.data.source import Split
from grpo.errors import DataError, RecipeError
from grpo.evaluation.decontaminate import NGRAM, Evaluation, normalized, prompt_text, task_texts
from grpo.outside.code import plugins
from grpo.outside.files.lines import to_line
from grpo.outside.rows.columns import gold_text
from grpo.outside.terminal.console import Console
from grpo.outside.terminal.streams import write_data
from grpo.types import Task, TaskSource

PROMPTS = ("prompt", "question", "problem", "messages")  # columns that are taken for the prompt
MOST = 100_000  # tasks looked at of a source
SHOWN = 3  # examples of a finding
PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to be looked at. heldout: of the same data, or of the file that `--heldout` names."""

    title: str
    rows: Sequence[Placed]
    prompt: str  # the column
    answer: str
    heldout: Sequence[str]  # texts of held-out rows, prompts first
    model: str = ""
    longest: int = 0  # tokens that a prompt may have; 0: not known


def main(arguments: Namespace) -> int:
    """Look at rows as the command line says; 0. Raises GrpoError."""
    if arguments.recipe is not None:
        check_form("data", "grpo data --recipe RECIPE", arguments)
    elif arguments.file is None:
        raise RecipeError("data takes a FILE of rows, or --recipe RECIPE; name one of them.")
    else:
        check_form("data", "grpo data FILE", arguments)
    print_data(**{name: getattr(arguments, name) for name in given(arguments) if name != "verb"})
    return 0


def print_data(
    *,
    file: str | None = None,
    recipe: str | None = None,
    model: str = "",
    heldout: str | None = None,
    prompt: str = "",
    answer: str = "answer",
    max_prompt_length: int = 0,
    json: bool = False,
) -> None:
    """Print what is in a file of rows or in a recipe's tasks, as a table or as JSON."""
    if file is not None:
        rows = _of_file(file, heldout, prompt, answer, model, max_prompt_length)
    else:
        rows = _of_recipe(str(recipe), model)
    found = described(rows)
    if json:
        write_data(to_line(found))
    else:
        _print(found, Console())


def described(data: Rows) -> dict[str, Any]:
    """What is to be said of the rows, as plain data; lengths in tokens where a model is named."""
    prompts = [prompt_text(cast(Any, row.get(data.prompt) or "")) for _, row in data.rows]
    places = [place for place, _ in data.rows]
    answers = [gold_text(row.get(data.answer)) for _, row in data.rows]
    found: dict[str, Any] = {
        "data": data.title,
        "rows": len(data.rows),
        "columns": _columns([row for _, row in data.rows]),
        "characters": _percentiles([len(prompt) for prompt in prompts]),
        "duplicates": _groups([_spaced(prompt) for prompt in prompts], places),
        "near_duplicates": _near(prompts, places),
        "contradictions": _contradictions(prompts, answers, places),
    }
    if data.model:
        found |= {"tokens": _tokens(data, prompts, places)}
    if data.heldout:
        leaks = Evaluation.of({"held-out": [[text] for text in data.heldout]}, NGRAM)
        where = [p for p, prompt in zip(places, prompts, strict=True) if leaks.leak(prompt)]
        found["contaminated"] = {
            "heldout_rows": len(data.heldout),
            "rows": len(where),
            "where": where[:SHOWN],
        }
    return found


def _of_file(
    file: str, heldout: str | None, prompt: str, answer: str, model: str, longest: int
) -> Rows:
    rows = read_rows(file)
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    column = prompt or next((name for name in PROMPTS if name in names), "")
    if column not in names:
        said = f"--prompt {column!r} is no column" if column else "no column looks like a prompt"
        raise DataError(f"{file}: {said}; name one with --prompt: {', '.join(names)}")
    others = [] if heldout is None else read_rows(heldout)
    return Rows(
        title=file,
        rows=rows,
        prompt=column,
        answer=answer,
        heldout=[prompt_text(cast(Any, row.get(column) or "")) for _, row in others],
        model=model,
        longest=longest,
    )


def _of_recipe(name: str, model: str) -> Rows:
    recipe = config.load(name)
    stages = [stage for stage in recipe.stages if isinstance(stage, RLStage)]
    if not stages:
        raise RecipeError(f"recipe {recipe.name!r} has no rl stage, so it has no tasks to look at")
    stage = stages[-1]
    source: TaskSource = plugins.load("source", stage.data.source, stage.data.args)
    train, heldout = (_tasks(source, split) for split in ("train", "heldout"))
    rows = [
        (task.where, {"prompt": task.prompt, "answer": task.answer, **task.columns})
        for task in train
    ]
    path = model or stage.model.path
    return Rows(
        title=f"data.source = {stage.data.source!r} of {recipe.name}, training tasks",
        rows=rows,
        prompt="prompt",
        answer="answer",
        heldout=[text for task in heldout for text in task_texts(task)[:1]],
        model="" if path.startswith("stage:") else path,
        longest=stage.data.max_prompt_length,
    )


def _tasks(source: TaskSource, split: str) -> list[Task]:
    named = cast(Split, split)
    size = source.size(named)
    return [source.task(named, i) for i in range(min(MOST, 1000 if size is None else size))]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every column its types, how many rows lack it, and an example."""
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [row.get(name) for row in rows]
        there = [cell for cell in cells if cell is not None]
        kinds = Counter(type(cell).__name__ for cell in there)
        example = there[0] if there else None
        shown = example if isinstance(example, str) else json_format.dumps(example, default=str)
        found.append(
            {
                "name": name,
                "types": [kind for kind, _ in kinds.most_common()],
                "missing": len(cells) - len(there),
                "different": len(
                    {json_format.dumps(cell, default=str, sort_keys=True) for cell in there}
                ),
                "example": " ".join(shown.split())[:60],
            }
        )
    return found


def _percentiles(numbers: Sequence[int]) -> dict[str, int]:
    """Lengths by nearest rank: {"50": …, "90": …, "99": …, "100": the longest}."""
    ordered = sorted(numbers)
    return {str(p): ordered[max(0, -(-p * len(ordered) // 100) - 1)] for p in PERCENTILES}


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _groups(keys: Sequence[str], places: Sequence[str]) -> dict[str, Any]:
    """Rows that are alike: how many beyond the first of each kind, and where the first ones are."""
    same: dict[str, list[str]] = defaultdict(list)
    for key, place in zip(keys, places, strict=True):
        same[key].append(place)
    groups = [found for found in same.values() if len(found) > 1]
    return {"rows": sum(len(g) - 1 for g in groups), "where": [g[:SHOWN] for g in groups[:SHOWN]]}


def _near(prompts: Sequence[str], places: Sequence[str]) -> dict[str, Any]:
    """Prompts that are the same but for case, punctuation and spaces."""
    distinct = {_spaced(prompt): place for prompt, place in zip(prompts, places, strict=True)}
    return _groups([normalized(prompt) for prompt in distinct], list(distinct.values()))


def _contradictions(
    prompts: Sequence[str], answers: Sequence[str | None], places: Sequence[str]
) -> dict[str, Any]:
    """Rows with the same prompt and different answers."""
    said: dict[str, dict[str, str]] = defaultdict(dict)
    for prompt, answer, place in zip(prompts, answers, places, strict=True):
        if answer is not None:
            said[_spaced(prompt)].setdefault(answer, place)
    wrong = [found for found in said.values() if len(found) > 1]
    shown = [[f"{place}: {answer[:30]}" for answer, place in found.items()] for found in wrong]
    return {"prompts": len(wrong), "where": [found[:SHOWN] for found in shown[:SHOWN]]}


def _tokens(data: Rows, prompts: Sequence[str], places: Sequence[str]) -> dict[str, Any]:
    """Lengths of prompts in tokens, without a template."""
    from grpo.model import pretrained  # imports transformers

    tokenizer = pretrained.tokenizer(data.model, "--model")
    counts = [len(tokenizer.encode(prompt, add_special_tokens=False)) for prompt in prompts]
    found: dict[str, Any] = {"model": data.model, **_percentiles(counts)}
    if data.longest:
        pairs = zip(places, counts, strict=True)
        where = [place for place, count in pairs if count > data.longest]
        found |= {"longest_allowed": data.longest, "too_long": len(where), "where": where[:SHOWN]}
    return found


def _print(found: Mapping[str, Any], console: Console) -> None:
    console.print(f"{found['data']}: {found['rows']:,} rows", style="bold", highlight=False)
    table = Table("column", "type", "missing", "different", "example")
    for one in found["columns"]:
        kinds = " or ".join(one["types"]) or "-"
        numbers = (f"{one['missing']:,}", f"{one['different']:,}")
        table.add_row(one["name"], kinds, *numbers, one["example"])
    console.print(table)
    say = [f"prompt lengths in characters: {_lengths(found['characters'])}"]
    if "tokens" in found:
        tokens = found["tokens"]
        say.append(f"prompt lengths in tokens of {tokens['model']}: {_lengths(tokens)}")
        if tokens.get("too_long"):
            most, where = tokens["longest_allowed"], ", ".join(tokens["where"])
            say.append(f"longer than {most} tokens: {tokens['too_long']:,} rows ({where})")
    for name, said in (
        ("duplicates", "rows repeat an earlier prompt"),
        ("near_duplicates", "prompts are an earlier one but for case, punctuation and spaces"),
    ):
        say.append(f"{found[name]['rows']:,} {said}{_where(found[name]['where'])}")
    clashing = found["contradictions"]
    say.append(f"{clashing['prompts']:,} prompts have different answers{_where(clashing['where'])}")
    if "contaminated" in found:
        leaks = found["contaminated"]
        places = f" ({', '.join(leaks['where'])})" if leaks["where"] else ""
        say.append(
            f"{leaks['rows']:,} rows share their prompt, or {NGRAM} words in a row of it, with one "
            f"of {leaks['heldout_rows']:,} held-out prompts{places}"
        )
    for line in say:
        console.print(line, highlight=False, soft_wrap=True)


def _lengths(found: Mapping[str, Any]) -> str:
    half, most, nearly, longest = (found[str(p)] for p in PERCENTILES)
    return f"half up to {half:,}, 90% up to {most:,}, 99% up to {nearly:,}, longest {longest:,}"


def _where(groups: Iterable[Sequence[str]]) -> str:
    shown = "; ".join(", ".join(group) for group in groups)
    return f" ({shown})" if shown else ""
