"""`grpo dry-run`: run a recipe for big models for real, in seconds, on a tiny model.

The small recipe (`grpo/commands/shrink.py`) goes through the same `train_recipe` as the real one.
It is interrupted after its first step of reinforcement learning, or before its last summary if it
has no such step, and is then resumed. What the run left on disk is checked stage by stage.
"""

from __future__ import annotations

import json
import math
import signal
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from rich.table import Column, Table
from rich.text import Text

from grpo.commands.architectures import Family, family_of, make_tiny
from grpo.commands.shrink import NOISE, STEPS, changes, shrink
from grpo.commands.train import resume_run, train_recipe
from grpo.config.config import from_dict, resolved
from grpo.config.schema import (
    AnyStage,
    DistillStage,
    EvalStage,
    Recipe,
    RejectStage,
    RLStage,
    SFTStage,
)
from grpo.errors import RecipeError
from grpo.model import pretrained
from grpo.outside.files.lines import from_lines
from grpo.outside.terminal.console import Console
from grpo.rewards.verifier import text_of
from grpo.rundir import ledger
from grpo.rundir.run_folder import stage_folder
from grpo.training.loop import Step
from grpo.types import Message

SMALL = 20 * 2**20  # bytes of weights below which a local model is run as it is


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing a dry run has to show."""

    stage: str
    what: str
    passed: bool
    detail: str


def interrupt(result: Step) -> None:
    """Callback of a dry run: Ctrl-C during the first step."""
    if result.step == 1:
        signal.raise_signal(signal.SIGINT)


def written(*, completions: Sequence[str | list[Message]], **_: Any) -> list[float]:
    """Reward of a dry run: 1 for a completion with any text, else 0."""
    return [float(bool(text_of(completion).strip())) for completion in completions]


def main(recipe: Recipe, arguments: Namespace) -> int:
    """Try a recipe as the command line says; 1 where a check fails. Raises GrpoError."""
    out = None if arguments.out is None else Path(arguments.out).resolve()
    if out is not None and out.exists():
        raise RecipeError(f"--out {arguments.out!r} is there already; name a new folder.")
    checks = dry_run(recipe, architecture=arguments.architecture, folder=out)
    return 0 if all(check.passed for check in checks) else 1


def dry_run(
    recipe: Recipe,
    *,
    architecture: str | None = None,
    folder: Path | None = None,
    console: Console | None = None,
) -> list[Check]:
    """Shrink, run, interrupt, resume, check; prints what was changed and what was found.

    architecture: family of the models, where their paths do not say. folder: kept afterwards;
    without it everything goes into a temporary one.
    """
    console = console or Console(stderr=True, highlight=False)
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="grpo-dry-run-") as place:
            return dry_run(recipe, architecture=architecture, folder=Path(place), console=console)
    transformers.utils.logging.disable_progress_bar()
    models = TinyModels(folder / "models", architecture)
    with console.status(f"dry run of {recipe.name}: tiny models"):
        small = shrink(recipe, models.policy, models.scorer)
    tree = resolved(small)
    tree["run"]["dir"] = str(folder / "run")
    small = from_dict(tree)
    print_changes(recipe, small, console)
    with console.status(
        f"dry run of {recipe.name}: {len(small.stages)} stages, {STEPS} steps each"
    ):
        checks = list(_run(small, folder / "run"))
    print_checks(recipe, checks, console)
    return checks


class TinyModels:
    """Tiny models in a folder, one for each path that a recipe names."""

    def __init__(self, folder: Path, architecture: str | None) -> None:
        self.folder = folder
        self.architecture = architecture

    def policy(self, path: str) -> str:
        """The folder of the tiny model for `path`; a local one that is tiny itself as it is."""
        weights = list(Path(path).glob("*.safetensors"))
        if weights and sum(file.stat().st_size for file in weights) < SMALL:
            return path
        family = family_of(path, self.architecture)
        return self._made(f"{family.architecture}-{path.strip('/').replace('/', '--')}", family)

    def scorer(self) -> str:
        """The folder of the tiny reward model."""
        family = Family(architecture="qwen2", dialect="chatml")
        return self._made("reward-model", family, classifier=True)

    def _made(self, name: str, family: Family, *, classifier: bool = False) -> str:
        place = self.folder / name
        if not place.exists():
            make_tiny(family, place, classifier=classifier)
        return str(place)


def _run(small: Recipe, folder: Path) -> Iterator[Check]:
    quiet = Console(quiet=True)
    learned = any(isinstance(stage, RLStage) for stage in small.stages)
    interrupted = False
    try:
        train_recipe(small, quiet)
    except KeyboardInterrupt as stop:
        if "saved at step 1" not in str(stop):
            raise
        interrupted = True
        resume_run(folder, quiet)
    if not learned:
        # As after a kill in the last stage: what it left is there, its summary is not.
        last = stage_folder(small, folder, small.stages[-1].name)
        (last / "summary.json").unlink()
        resume_run(folder, quiet)
        interrupted = True
    for stage in small.stages:
        for what, passed, detail in _checks(stage, stage_folder(small, folder, stage.name)):
            yield Check(stage=stage.name, what=what, passed=passed, detail=detail)
    yield _resumed(small, folder, interrupted)


def _resumed(small: Recipe, folder: Path, interrupted: bool) -> Check:
    stage = next((s for s in small.stages if isinstance(s, RLStage)), small.stages[-1])
    done = (stage_folder(small, folder, stage.name) / "summary.json").is_file()
    where = "after step 1" if isinstance(stage, RLStage) else "before its summary"
    return Check(
        stage=stage.name,
        what="resumes",
        passed=interrupted and done,
        detail=f"cut {where}, resumed and finished" if interrupted else "was not interrupted",
    )


Found = tuple[str, bool, str]  # `what`, `passed` and `detail` of a check


def _checks(stage: AnyStage, folder: Path) -> Iterator[Found]:
    """What a finished stage has to show, by its kind."""
    summary = json.loads((folder / "summary.json").read_text())
    if isinstance(stage, RejectStage | DistillStage):
        yield "rows kept", any((folder / "data").glob("*.jsonl")), summary["result"]
    if isinstance(stage, RLStage | SFTStage | DistillStage):
        lines = _metrics(folder)
        count = stage.learner.max_steps if isinstance(stage, RLStage) else STEPS
        steps = [line["step"] for line in lines]
        yield "steps", steps == list(range(1, count + 1)), f"{len(steps)} of {count}"
        norms = [line["grad_norm"] for line in lines]
        moves = max(norms, default=0) > 0 and all(map(math.isfinite, norms))
        yield "gradient", moves, f"norm {', '.join(f'{norm:.3g}' for norm in norms)}"
    if isinstance(stage, RLStage):
        versions = _versions(folder, len(_metrics(folder)))
        said = f"{len(versions)} versions sampled from, each acknowledged with its hash and canary"
        yield "weights delivered", len(versions) > 1, said
    if isinstance(stage, EvalStage):
        asked, wanted = len(summary["models"]), len(stage.models)
        yield "models evaluated", asked == wanted, f"{asked} of {wanted}"
    elif not isinstance(stage, RejectStage):
        yield _loads(folder)


def _versions(folder: Path, steps: int) -> list[str]:
    """Hashes of the weights that sampled the batches of the steps, in order."""
    found = dict.fromkeys(
        segment["version"][1]
        for step in range(1, steps + 1)
        for line in ledger.read(folder / "ledger", step)
        for segment in line["segments"]
    )
    return list(found)


def _loads(folder: Path) -> Found:
    """Whether the saved model loads: every tensor found, all finite."""
    try:
        model = pretrained.load_model(str(folder / "model"))
        pretrained.tokenizer(str(folder / "model"))
    except RecipeError as error:
        return "model loads", False, str(error)[:200]
    count = sum(p.numel() for p in model.parameters())
    return "model loads", True, f"{model.config.model_type}, {count:,} parameters"


def _metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return from_lines(file.read_text(encoding="utf-8")) if file.is_file() else []


def _table(title: str, *headings: str) -> Table:
    columns = [Column(heading, overflow="fold") for heading in headings]
    return Table(*columns, title=title, title_justify="left")


def print_changes(recipe: Recipe, small: Recipe, console: Console) -> None:
    """Every setting that the dry run replaced or shrank."""
    table = _table(
        f"{recipe.name}: what the dry run changed", "stage", "setting", "recipe", "dry run"
    )
    for row in changes(recipe, small):
        table.add_row(*row)
    console.print(table)
    if any(isinstance(stage, RLStage) for stage in small.stages):
        console.print(
            f"added: the reward {NOISE['label']}, a coin of weight {NOISE['weight']} (an untrained "
            "model earns the same for everything), and an interruption after the first step",
            markup=False,
        )


def print_checks(recipe: Recipe, checks: list[Check], console: Console) -> None:
    """One line per check, and the verdict."""
    table = _table(f"{recipe.name}: dry run", "stage", "check", "", "detail")
    for check in checks:
        verdict = Text("ok", "green") if check.passed else Text("FAILED", "red")
        table.add_row(check.stage, check.what, verdict, check.detail)
    console.print(table)
    failed = sum(not check.passed for check in checks)
    console.print(
        f"{failed} of {len(checks)} checks failed"
        if failed
        else "the recipe runs (its figures mean nothing: the models are tiny and untrained)",
        markup=False,
    )
