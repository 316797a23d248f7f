"""`grpo train`: turn a recipe into a run directory, or continue one.

    runs/<name>/  resolved.json  provenance.json  summary.json  metrics.jsonl  ledger/
                  checkpoints/  checkpoints.jsonl  eval/*.jsonl  model/

A recipe of several stages gives each stage such a folder inside the run's; the summary of the
last stage is the run's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from grpo.commands import process
from grpo.commands.out_of_memory import explained
from grpo.commands.process import prepare_process
from grpo.commands.summary import print_stages, print_summary
from grpo.config.config import from_dict, resolved
from grpo.config.schema import AnyStage, Recipe, RLStage
from grpo.errors import GrpoError, PluginError, RecipeError, RunError
from grpo.kernels import native
from grpo.model import compute_types
from grpo.model.ranks import Ranks, join
from grpo.outside.code import objects
from grpo.outside.code.foreign import said
from grpo.outside.files import durable
from grpo.outside.terminal.console import Console
from grpo.rundir import finished, record
from grpo.rundir.claim import claimed
from grpo.rundir.run_folder import NO_RUN, SETTINGS, objects_in, recipe_of, stage_folder
from grpo.stages import inputs, preflight
from grpo.stages.origins import located, origin

LAUNCHED = "WORLD_SIZE"  # set where the process is one of several ranks already


@dataclass(frozen=True)
class _Run:
    """A run directory and who works in it."""

    recipe: Recipe
    folder: Path
    console: Console
    ranks: Ranks
    accept: bool = False  # changes of what it was started with

    def place(self, stage: AnyStage) -> Path:
        """The folder of a stage."""
        return stage_folder(self.recipe, self.folder, stage.name)

    def say(self, *lines: str) -> None:
        """What is not empty, a line each, once for all ranks."""
        for line in lines if self.ranks.rank == 0 else ():
            if line:
                self.console.print(line, markup=False, soft_wrap=True)


@contextmanager
def _claimed(run: _Run) -> Iterator[None]:
    """Keep other processes from training in the folder; of several ranks the first holds it."""
    with ExitStack() as held:
        run.say(run.ranks.on_first(lambda: held.enter_context(claimed(run.folder))))
        yield


def train(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Run a recipe here, or with `ray.learners` ranks on Ray; the summary of its last stage.

    console: of a run here; by default standard error. Ranks on Ray have their own.
    """
    if not _on_ray(recipe):
        return train_recipe(recipe, console)
    from grpo.commands.ray_learners import run_ranks

    share = max(1, (recipe.run.threads or os.cpu_count() or 1) // recipe.ray.learners)
    return run_ranks(recipe, _trained, threads=share)


def resume(
    path: str | Path, console: Console | None = None, *, accept_changes: bool = False
) -> dict[str, Any]:
    """Continue the run in folder `path` as it was begun; see `resume_run` and `train`."""
    recipe = recipe_of(path)
    if not _on_ray(recipe):
        return resume_run(path, console, accept_changes=accept_changes)
    from grpo.commands.ray_learners import run_ranks

    work = partial(_resumed, str(path), accept_changes)
    return run_ranks(recipe, work, threads=recipe.run.threads)  # a rank's share already


def _trained(settings: dict[str, Any], console: Console) -> dict[str, Any]:
    """The recipe of these settings, as a rank."""
    return train_recipe(from_dict(settings), console)


def _resumed(
    path: str, accept_changes: bool, _settings: dict[str, Any], console: Console
) -> dict[str, Any]:
    """The rest of a run, as a rank; its settings are its folder's."""
    return resume_run(path, console, accept_changes=accept_changes)


def _on_ray(recipe: Recipe) -> bool:
    """Whether this process has to start the ranks on Ray; false in a rank itself."""
    return recipe.ray.learners > 1 and LAUNCHED not in os.environ


def train_recipe(recipe: Recipe, console: Console | None = None) -> dict[str, Any]:
    """Run every stage of `recipe` in a new run directory; the summary of the last one.

    Raises RunError if the directory holds another run already, or one is being started there.
    """
    folder = Path(recipe.run_dir).expanduser().resolve()
    ranks = _join(recipe, recipe.run.threads)
    # One type for all ranks, and for every machine that the run goes on on.
    recipe = ranks.on_first(lambda: compute_types.settled(recipe, ranks.device))
    run = _Run(recipe, folder, console or _console(), ranks)
    with _claimed(run):
        ranks.on_first(lambda: _found(run))
        try:
            return _run_stages(run)
        except GrpoError:
            if ranks.rank == 0 and not has_begun(folder):
                # nothing was done yet, so the corrected command may use the folder
                (folder / SETTINGS).unlink()
            raise


def has_begun(folder: Path) -> bool:
    """Whether a run has steps or answers, which a run with other settings may not use."""
    logs = (*folder.rglob("metrics.jsonl"), *folder.rglob(f"eval/{finished.ASKED}"))
    return any(log.stat().st_size for log in logs)


def _found(run: _Run) -> None:
    """Make the run directory, with its settings and its record. Raises RunError."""
    folder = run.folder
    if (folder / SETTINGS).exists():
        raise RunError(
            f"run.dir = {str(folder)!r} already holds a run; continue it with "
            f"`grpo train --resume {folder}`, or choose another run.dir"
        )
    preflight.check_secrets(run.recipe)
    settings = resolved(run.recipe)
    try:
        record.write(folder, {**process.described(run.ranks), "settings": settings})
        durable.write_json(folder / SETTINGS, settings)
    except OSError as error:
        raise RunError(f"run.dir = {str(folder)!r} cannot be written: {error}") from error


def resume_run(
    path: str | Path, console: Console | None = None, *, accept_changes: bool = False
) -> dict[str, Any]:
    """Continue the run in `path` from its newest checkpoint; the summary of its last stage.

    The run keeps its settings, its number of threads and its kernels. Raises RunError where
    anything else has changed. With `accept_changes` its rows, files, ranks and device may have
    changed; what was sampled ahead is then sampled anew.
    """
    folder = Path(path).expanduser().resolve()
    if not (folder / SETTINGS).is_file():
        raise RunError(NO_RUN.format(str(path)))
    started = record.read(folder)
    record.check_settings(started, durable.read_json(folder / SETTINGS), folder)
    recipe = recipe_of(folder)
    _check_objects(recipe, folder)
    before = started.get("process", {})
    ranks = _join(recipe, before.get("threads", recipe.run.threads))
    run = _Run(recipe, folder, console or _console(), ranks, accept_changes)
    on = before.get("kernels") if not accept_changes else None
    with _claimed(run), process.kernels(native.is_on() if on is None else on) as switched:
        run.say(switched, *process.thread_lines(before.get("threads", 1)))
        ranks.on_first(lambda: _continued(run))
        return _run_stages(run)


def _check_objects(recipe: Recipe, folder: Path) -> None:
    """Refuse a run that needs Python objects which this process was not given. Raises RunError."""
    missing = [text for _, text in objects_in(resolved(recipe)) if not objects.has(text)]
    if missing:
        names = ", ".join(text.removeprefix(objects.PREFIX) for text in missing)
        raise RunError(
            f"run {str(folder)!r} was started from Python with objects that only its program has "
            f"({names}); go on from there: {_going_on(recipe, folder)}"
        )


def _going_on(recipe: Recipe, folder: Path, *, accept: bool = False) -> str:
    """What continues a run that was stopped, as a person types it."""
    found = objects_in(resolved(recipe))
    if not found:
        return f"grpo train --resume {folder}{f' {record.ACCEPT}' if accept else ''}"
    rewards = [text.removeprefix(objects.PREFIX) for s, text in found if "rewards." in s]
    again = [f"rewards=[{', '.join(dict.fromkeys(rewards))}]"] if rewards else []
    again += ["dataset=…"] if any(".data." in s for s, _ in found) else []
    others = [s.split(".") for s, _ in found if ".data." not in s and "rewards." not in s]
    again += [f"{parts[2 if parts[2:] else -1]}=…" for parts in others]
    again += ["accept_changes=True"] if accept else []
    return f"grpo.load_run({str(folder)!r}).resume({', '.join(dict.fromkeys(again))})"


def _continued(run: _Run) -> None:
    """Compare this process with the one the run was started in. Raises RunError."""
    started, now = record.read(run.folder), process.described(run.ranks)
    settings = durable.read_json(run.folder / SETTINGS)
    lines = record.check_settings(started, settings, run.folder)
    changes = process.check_process(started, now)
    if changes and not run.accept:
        raise RunError(
            f"run {str(run.folder)!r} was started otherwise: {', '.join(changes)}; resume it so, "
            f"or as it is now, from here on with other last bits: "
            f"{_going_on(run.recipe, run.folder, accept=True)}"
        )
    lines += [*changes, *process.check_versions(started, now)]
    run.say(*lines)
    record.note(started, lines)
    record.write(run.folder, started | {name: now[name] for name in record.CURRENT})


def _run_stages(run: _Run) -> dict[str, Any]:
    """The stages that have no summary yet, in order."""
    recipe, folder, ranks, console = run.recipe, run.folder, run.ranks, run.console
    summaries: dict[str, dict[str, Any]] = {}
    damages: dict[str, str] = {}
    ranks.on_first(lambda: finished.tidy(folder, console))
    for stage in recipe.stages:
        place = run.place(stage)
        before, damages[stage.name] = ranks.on_first(lambda at=place: finished.look(at, console))
        if before is not None:
            summaries[stage.name] = before
            console.print(f"stage {stage.name}: done before", markup=False)
    left = [stage for stage in recipe.stages if stage.name not in summaries]
    ranks.on_first(lambda: preflight.start(recipe, folder, tuple(summaries), run.say))
    ranks.on_first(lambda: _compare(run, left))
    for stage in left:
        place = run.place(stage)
        if stage is not left[0]:  # hours may have passed
            ranks.on_first(lambda one=stage: _compare(run, [one]))
        try:
            # Paths are found anew: the run may have been moved.
            with finished.again(place, damages[stage.name]):
                summary = _run_stage(located(stage, recipe, folder), recipe, place, console, ranks)
        except SystemExit as exit:  # a script that trains would end well
            raise PluginError(f"stage {stage.name}: code of a plug-in {said(exit)}") from exit
        except (KeyboardInterrupt, OSError, GrpoError):  # OSError: a full disk, say
            _say_how_to_go_on(run, place)
            raise
        made_of = {} if ranks.rank else origin(stage, recipe, folder)
        head = {"recipe": recipe.name, "seed": recipe.run.seed, "stage": stage.name}
        summaries[stage.name] = {**head, **summary, "origin": made_of}
        ranks.on_first(lambda at=place, done=summaries[stage.name]: finished.leave(at, done))
    last = summaries[recipe.stages[-1].name]
    if len(recipe.stages) > 1:
        ranks.on_first(lambda: durable.write_json(folder / "summary.json", last))
        print_stages({stage.name: stage.kind for stage in recipe.stages}, summaries, console)
    print_summary(last, folder, console)
    return last


def _say_how_to_go_on(run: _Run, place: Path) -> None:
    """After an error in the stage in `place`: what there is to go on from, and how."""
    if not has_begun(run.folder):
        return
    how = _going_on(run.recipe, run.folder)
    if not any((place / "checkpoints").glob("step_*[0-9]")):
        how += (
            f" (no checkpoint yet, as run.save_steps = {run.recipe.run.save_steps}: from the start)"
        )
    run.say(f"continue with: {how}")


def _compare(run: _Run, stages: Sequence[AnyStage]) -> None:
    """Compare the inputs of stages with the run's record of them, and record new ones.

    Raises RunError where they have changed and the changes are not accepted.
    """
    started = record.read(run.folder)
    begun = json.dumps(started)
    for stage in stages:
        here = located(stage, run.recipe, run.folder)
        files, rows = inputs.files_of(here), {}
        if stage is stages[0] or not inputs.is_within(here, run.folder):
            rows = inputs.rows_of(here)
        changes = record.check_inputs(run.folder, started, stage.name, files, rows)
        if changes and not run.accept:
            how = _going_on(run.recipe, run.folder, accept=True)
            raise RunError(
                f"stage {stage.name}: what the run was started with has changed: "
                f"{'; '.join(changes)}. Put it back, or go on with `{how}`, which samples anew "
                "what was sampled ahead"
            )
        if changes:
            changes = [f"stage {stage.name}: {change}" for change in changes]
            run.say(*(f"accepted: {change}" for change in changes))
            inputs.sample_anew(here, run.place(stage))
            record.accept(started, stage.name, changes)
        record.keep_inputs(run.folder, started, stage.name, files, rows)
    if json.dumps(started) != begun:
        record.write(run.folder, started)


def _run_stage(
    stage: AnyStage, recipe: Recipe, place: Path, console: Console, ranks: Ranks
) -> dict[str, Any]:
    """One stage; its file is named after its kind, and imported when it is needed."""
    console.doing(f"{stage.name}: loading")
    run = import_module(f"grpo.stages.{stage.kind}").run
    with explained(stage, place, several=len(recipe.stages) > 1):
        if isinstance(stage, RLStage):
            return run(stage, recipe, place, console, ranks)
        return ranks.on_first(lambda: run(stage, recipe, place, console))


def _console() -> Console:
    """Standard error; of several ranks only the first one prints."""
    return Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")


def _join(recipe: Recipe, threads: int) -> Ranks:
    """The learner's ranks, before anything loads a model. Raises RecipeError."""
    prepare_process(threads)
    ranks = join()
    if recipe.ray.learners not in (1, ranks.count):
        raise RecipeError(
            f"ray.learners = {recipe.ray.learners}, but {ranks.count} learner ranks were launched; "
            "`grpo train` starts them on Ray, and so does grpo.commands.train.train"
        )
    for stage in recipe.stages if ranks.count > 1 else ():
        if not isinstance(stage, RLStage):
            continue
        wrong = {
            "schedule.mode": stage.schedule.mode != "sync" and stage.schedule.mode,
            "rollout.oversample": stage.rollout.oversample != 1 and stage.rollout.oversample,
            "rollout.max_rounds": stage.rollout.max_rounds != 1 and stage.rollout.max_rounds,
        }
        for setting, value in wrong.items():
            if value:
                raise RecipeError(
                    f"{setting} = {value} works with one learner rank only, and {ranks.count} were "
                    "launched: each rank samples its own prompts, in turns with learning; leave "
                    "the setting out"
                )
        if stage.rollout.backend == "ray" and not recipe.ray.address and recipe.ray.learners == 1:
            raise RecipeError(
                f"rollout.backend = ray with {ranks.count} learner ranks needs a cluster that all "
                "of them join: `ray start --head`, then ray.address=auto"
            )
    return ranks
