"""The eval stage: every model answers the same held-out tasks with the same noise.

    eval/<model>.jsonl: one greedy answer and num_samples completions a task, each with its scores

Models are asked one after the other: an engine is closed before the next one loads. When a run is
resumed, a model is not asked again if its answers are there and unchanged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from grpo.config.schema import EvalStage, Model, Recipe, Rollout
from grpo.evaluation import figures, heldout, paired, tally
from grpo.outside.files import hashes, manifest
from grpo.outside.files.file_names import folder_name
from grpo.outside.files.manifest import Damage
from grpo.outside.terminal.console import Console
from grpo.rewards.compose import RewardSet
from grpo.rundir.finished import ASKED
from grpo.rundir.provenance import content_hash
from grpo.stages.bars import bar
from grpo.stages.remote_rewards import reward_set
from grpo.stages.wiring import build_sampler

DIFFERENCE = "difference"  # heading of what a model is better by than the baseline


def run(stage: EvalStage, recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """Evaluate the stage's models in `folder`; the summary with one table row a model."""
    began = time.perf_counter()
    names = model_names(stage.models)
    titles = [spec.title for spec in stage.rewards]
    lines: dict[str, list[dict[str, Any]]] = {}
    asked = _asked(folder, console)
    with closing(reward_set(stage.rewards)) as rewards:
        for number, (name, path) in enumerate(zip(names, stage.models, strict=True), 1):
            out = folder / "eval" / f"{name}.jsonl"
            label = f"{name} ({number} of {len(names)})"
            if out.is_file() and asked.get(name) == _answers(out, path):
                console.print(f"{stage.name}: {label}: done before", markup=False)
            else:
                with bar(label, console, remaining=True) as progress:
                    _ask(stage, recipe, path, rewards, out, progress)
                asked |= {name: _answers(out, path)}
                manifest.write_sealed(out.parent / ASKED, asked)
            lines[name] = heldout.read_lines(out)
            said = figures.sentence(tally.summarize(lines[name], titles, recipe.run.seed))
            console.print(f"{stage.name}: {label}: {said}", markup=False)
    baseline = names[stage.models.index(stage.baseline) if stage.baseline else 0]
    return {
        **_figures(lines, titles, baseline, recipe.run.seed),
        "seconds": round(time.perf_counter() - began, 1),
    }


def model_names(paths: Sequence[str]) -> list[str]:
    """A name for each model, all different: NAME of `…/NAME/model`, else the folder's own."""
    names: list[str] = []
    for path in paths:
        name = folder_name(path)
        number, unique = 1, name
        while unique in names:
            number += 1
            unique = f"{name}-{number}"
        names.append(unique)
    return names


def _asked(folder: Path, console: Console) -> dict[str, Any]:
    """name -> `_answers` of each model that was asked before; nothing if the file is damaged."""
    if not (folder / "eval").is_dir():
        return {}
    try:
        return manifest.read_sealed(folder / "eval" / ASKED, folder)
    except Damage as damage:
        said = f"{damage}; every model is asked again"
        console.print(said, markup=False, soft_wrap=True)
        return {}


def _answers(out: Path, model: str) -> dict[str, Any]:
    """Hashes of a file of answers and of the model that gave them (None: a name on the hub)."""
    return {"answers": hashes.known(out.parent, [out]), "model": content_hash(model)}


def _ask(
    stage: EvalStage, recipe: Recipe, path: str, rewards: RewardSet, out: Path, progress: Any
) -> None:
    sampler = build_sampler(
        model=Model(path=path, dtype=stage.dtype),
        data=stage.data,
        rollout=Rollout(
            engine=stage.engine,
            max_completion_length=stage.max_completion_length,
            temperature=stage.temperature,
            top_p=stage.top_p,
        ),
        recipe=recipe,
        num_heldout=stage.num_tasks,
    )
    judge = heldout.HeldOut(
        prompts=sampler.prompts,
        rewards=rewards,
        sampling=sampler.sampling,
        num_samples=stage.num_samples,
        seed=recipe.run.seed,
    )
    with closing(sampler.engine):
        judge.evaluate(sampler.engine, out, progress)


def _figures(
    lines: dict[str, list[dict[str, Any]]], titles: Sequence[str], baseline: str, seed: int
) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {}
    details = {name: tally.summarize(found, titles, seed) for name, found in lines.items()}
    rows: dict[str, list[paired.Row]] = {}
    first = tally.headline(lines[baseline], titles)
    for name, found in lines.items():
        models[name] = tally.columns(found, titles, seed)
        if name != baseline:
            gap = tally.difference(found, lines[baseline], first, seed)
            models[name][DIFFERENCE] = None if gap is None else list(gap)
            pair = details[baseline], details[name]
            rows[name] = paired.compared(*pair, lines[baseline], found, seed)
    figure = "accuracy" if all("accuracy" in row for row in models.values()) else first
    said = ", ".join(f"{name} {_first(row, figure)}" for name, row in models.items())
    missing = {name: tally.unscored(found, titles) for name, found in lines.items()}
    return {
        "result": f"{figure}: {said}",
        "figure": figure,
        "models": models,
        "baseline": baseline,
        "paired": rows,
        "details": details,
        "not_applicable": {name: counts for name, counts in missing.items() if counts},
    }


def _first(row: dict[str, Any], figure: str) -> str:
    found = row.get(figure)
    return figures.number(found[0] if found else None)
