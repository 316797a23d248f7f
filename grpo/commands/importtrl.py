"""`grpo import-trl`: a file of `trl grpo --config` becomes a recipe.

What TRL's arguments decide is in the recipe. A comment says of each argument that changes nothing
here why that is so. What would give other numbers is refused, all of it at once, with its line.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from grpo.commands.options import check_form
from grpo.config import config as recipes
from grpo.config.schema import RLStage, Run
from grpo.config.trl.convert import Facts, convert
from grpo.config.trl.grpo_fields import ELSEWHERE, FIELDS
from grpo.config.trl.parts import Found
from grpo.config.trl.script import SCRIPT_FIELDS, sections
from grpo.config.trl.settings import GRPOConfig, checked
from grpo.errors import RecipeError, did_you_mean, printable
from grpo.outside.files.yaml_tree import read_yaml
from grpo.outside.terminal.streams import write_data

Tree = dict[str, Any]
_KEY = re.compile(r"^['\"]?([A-Za-z_0-9]+)['\"]?\s*:")
_USAGE = 2
_ORDER = ("name", "run", "model", "data", "rollout", "rewards", "algorithm", "learner", "eval")
# What a reader looks for, also where it is the default.
_SHOWN = (
    *("prompts_per_step", "num_generations", "max_completion_length", "temperature", "max_steps"),
    *("learning_rate", "advantage", "loss_type", "beta"),
)


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The text of a recipe, or what is refused: (line or 0, sentence)."""

    text: str
    refused: tuple[tuple[int, str], ...]


def main(arguments: Namespace) -> int:
    """Import as the command line says; 2 where something is refused. Raises RecipeError."""
    check_form("import-trl", "grpo import-trl CONFIG.yaml", arguments)
    out = None if arguments.out is None else Path(arguments.out).resolve()
    refused = import_trl(
        arguments.config, out=out, rows=arguments.rows, eval_rows=arguments.eval_rows
    )
    for line, sentence in refused:
        where = f"{arguments.config}:{line}" if line else arguments.config
        end = "" if sentence.endswith("?") else "."
        print(f"grpo: error: {printable(f'{where}: {sentence}')}{end}", file=sys.stderr)
    return _USAGE if refused else 0


def import_trl(
    file: str, *, out: Path | None = None, rows: int | None = None, eval_rows: int | None = None
) -> Sequence[tuple[int, str]]:
    """Write the recipe of TRL's file `file` to `out`, or to stdout.

    rows, eval_rows: of the two splits, which the file does not say; rows are needed for epochs.
    Returns what is refused, (line or 0, sentence) each; nothing is written then. Raises
    RecipeError where there is no file to read, or one to write already.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file!r} cannot be read: {error}") from error
    if out is not None and out.exists():
        raise RecipeError(f"--out {str(out)!r}: there is such a file; give another name")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).lstrip("-_.") or "trl"
    made = imported(text, name, rows, eval_rows or 0)
    if made.refused or out is None:
        write_data(made.text)
    else:
        out.write_text(made.text, encoding="utf-8")
        print(f"{out}: see what it does with `grpo plan {out}`", file=sys.stderr)
    return made.refused


def imported(text: str, name: str, rows: int | None, eval_rows: int) -> Imported:
    """The recipe of the text of a file. name: of the recipe, where run_name says none."""
    given = read_yaml(text, "TRL's configuration")
    if not isinstance(given, dict):
        raise RecipeError("TRL's configuration is not a mapping of arguments to values.")
    lines = {
        found[1]: number
        for number, line in enumerate(text.splitlines(), 1)
        if (found := _KEY.match(line))
    }
    values, wrong = _checked(cast(Tree, given))
    found = Found(refused=wrong)
    trainer = GRPOConfig(**{k: v for k, v in values.items() if k in FIELDS})
    evaluated = trainer.eval_strategy != "no" or trainer.eval_on_start
    own = sections({k: v for k, v in values.items() if k in SCRIPT_FIELDS}, evaluated, found)
    facts = Facts(num_rows=rows, num_rewards=len(own["rewards"]), num_eval_rows=eval_rows)
    made = convert(trainer, facts)
    refused = {**made.refused, **found.refused}
    if "max_steps" in wrong:
        refused.pop("num_train_epochs", None)  # steps were meant
    if "num_train_epochs" in refused:
        refused["num_train_epochs"] += ", or give the rows of the training split with --rows N"
    for asked in ("eval_strategy", "eval_on_start"):
        if asked in refused and evaluated and not eval_rows:
            refused[asked] = f"{asked} needs the rows of the test split: give --eval-rows N"
    if refused:
        placed = [(lines.get(name, 0), sentence) for name, sentence in refused.items()]
        return Imported(text="", refused=tuple(sorted(placed)))
    tree = _together(made.tree, own, name)
    return Imported(text=_written(tree, [*found.notes, *made.notes], lines), refused=())


def _checked(given: Tree) -> tuple[Tree, dict[str, str]]:
    """The values that TRL would take, and name -> why another one is refused."""
    known = {**FIELDS, **SCRIPT_FIELDS}
    values: Tree = {}
    wrong: dict[str, str] = {}
    for name, value in given.items():
        if name not in known:
            hint = did_you_mean(name, sorted(known))
            said = f": {ELSEWHERE[name]}" if name in ELSEWHERE else f".{hint}" if hint else ""
            wrong[name] = f"TRL has no argument {name!r}{said}".removesuffix(".")
            continue
        try:
            values[name] = checked(name, known[name], value)
        except RecipeError as error:
            wrong[name] = str(error)
    return values, wrong


def _together(tree: Tree, own: Tree, name: str) -> Tree:
    """One recipe of what the config decides and what the script does, defaults left out."""
    weights = tree.get("rewards", [{}] * len(own["rewards"]))
    rewards = [{**a, **b} for a, b in zip(own["rewards"], weights, strict=True)]
    whole: Tree = {"name": name, **tree, "rewards": rewards}
    for section in ("model", "data"):
        whole[section] = {**own[section], **tree[section]}
    defaults = {**recipes.section_types(RLStage)}
    defaults |= {f"run.{key}": field for key, field in recipes.section_types(Run).items()}
    for section, settings in whole.items():
        if isinstance(settings, dict):
            whole[section] = {
                key: value
                for key, value in cast(Tree, settings).items()
                if key in _SHOWN or not _is_default(defaults.get(f"{section}.{key}"), value)
            }
    return {key: whole[key] for key in _ORDER if whole.get(key)}


def _is_default(field: Any, value: Any) -> bool:
    if field is None:
        return False
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return default == value and type(default) is type(value)


def _written(tree: Tree, notes: list[str], lines: Mapping[str, int]) -> str:
    """The recipe as YAML under a comment for each note."""
    head = ["Made by `grpo import-trl`: the numbers that TRL 1.16 would train with."]
    for note in notes:
        line = lines.get(note.partition(" ")[0], 0)
        head.append(f"{f'line {line}: ' if line else ''}{note}.")
    comments = "".join(f"# {printable(line)}\n" for line in head)
    body = yaml.safe_dump(tree, sort_keys=False, width=100)
    return f"{comments}\n{body}"
