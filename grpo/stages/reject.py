"""The reject stage: sample, verify, keep the best, and leave rows for supervised fine-tuning.

    tasks -> shards/00000.jsonl … (every completion with its score) -> data/train.jsonl, README.md

Sampling and filtering are separate. A shard holds everything that was sampled for some tasks, and
`data/` is a function of the shards. A stage that was killed samples only the missing shards and
leaves the same bytes. Tasks that are too long, repeated, or part of an evaluation set are passed
over before anything is sampled for them, and other tasks take their place.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grpo.config.schema import DistillStage, Recipe, RejectStage
from grpo.data.conversation import template_columns
from grpo.data.mixture import task_sampling
from grpo.data.source import TaskOrder, stable_hash
from grpo.errors import DataError, RunError
from grpo.evaluation.decontaminate import Evaluation, load_evaluation, normalized, prompt_text
from grpo.evaluation.screen import REASONS, Sample, Sampled, row, screen
from grpo.outside.files import durable, manifest
from grpo.outside.files.lines import from_lines
from grpo.outside.files.manifest import Damage
from grpo.outside.terminal.console import Console
from grpo.outside.terminal.view import SampledText
from grpo.rewards.compose import RewardSet
from grpo.rewards.language import LanguageConsistency
from grpo.rollout.collect import collect
from grpo.rundir import checkpoint, provenance
from grpo.rundir.log import RunLog
from grpo.stages.card import card
from grpo.stages.shards import MADE_OF, SamplingJob, read_lines
from grpo.stages.wiring import Sampler, build_rewards, build_sampler
from grpo.types import Completion, Metrics, NoiseSplit, Prompt, Request, Score

BARREN = 10_000  # tasks of an endless source in a row that may not be used, before giving up

AnySampling = RejectStage | DistillStage  # stages with data, rollout, rewards and filter


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The tasks that are sampled, and by reason how many others were passed over."""

    prompts: list[tuple[Prompt, int]]  # with their visit, see TaskOrder
    passed: dict[str, int]


def run(stage: RejectStage, recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """Leave `folder/data`; its summary. Raises DataError where nothing is kept."""
    build = partial(
        build_sampler, model=stage.model, data=stage.data, rollout=stage.rollout, recipe=recipe
    )
    return leave_rows(stage, recipe, folder, console, build, stage.model.path, folder)


def leave_rows(
    stage: AnySampling,
    recipe: Recipe,
    folder: Path,
    console: Console,
    build: Callable[[], Sampler],
    model: str,
    work: Path,
) -> dict[str, Any]:
    """Sample what is missing in `work/shards`, make `folder/data` of them; the stage's summary.

    `build` is called only where something is still to be sampled; `model` is what samples, a folder
    or a name; `work` gets the shards and the metrics. Raises DataError, with the counts, where
    nothing is kept, and RunError for shards of another model or other tasks.
    """
    data = folder / "data"
    say = partial(console.print, markup=False, soft_wrap=True)
    if not SamplingJob.of(work).complete(data, say):
        if stage.filter.language:
            LanguageConsistency(stage.filter.language)  # refuses an unknown code at the start
        work.mkdir(exist_ok=True)
        _sample_and_screen(stage, recipe, folder, console, build, model, work)
    counts = json.loads((data / "counts.json").read_text())
    lines = from_lines((work / checkpoint.LOG).read_text(encoding="utf-8"))
    dropped = ", ".join(f"{name} {n}" for name, n in counts["dropped"].items())
    kept = f"kept {counts['rows']} of {counts['completions']} completions"
    return {
        "result": f"{kept} ({dropped})" if dropped else kept,
        "seconds": round(sum(line["seconds"] for line in lines), 1),
        "data": str(data),
        **counts,
    }


def _sample_and_screen(
    stage: AnySampling,
    recipe: Recipe,
    folder: Path,
    console: Console,
    build: Callable[[], Sampler],
    model: str,
    work: Path,
) -> None:
    seed = stable_hash("stage", recipe.run.seed, stage.name) % 2**31
    evaluation = load_evaluation(stage.filter.decontaminate, stage.filter.ngram, stage.data)
    sampler = build()
    with closing(sampler.engine), closing(build_rewards(stage, recipe)) as rewards:
        with console.status(f"{stage.name}: drawing tasks"):
            drawn = draw(sampler, stage.filter.num_tasks, seed, evaluation)
        made_of = _made_of(stage, model, drawn, seed, folder.parent, work / "shards")
        size = stage.rollout.prompts_per_step
        total = -(-len(drawn.prompts) // size)
        job = SamplingJob.of(work)
        done = job.whole(partial(console.print, markup=False, soft_wrap=True))
        job.rewind(done)
        if done:
            console.print(f"{stage.name}: {done} of {total} shards done before", markup=False)
        with RunLog(
            work,
            title=stage.name,
            max_steps=total,
            done=done,
            trackers=recipe.run.trackers,
            config=stage.model_dump(mode="json"),
            console=console,
        ) as log:
            for number in range(done, total):
                began = time.perf_counter()
                prompts = drawn.prompts[number * size : (number + 1) * size]
                groups = sample(sampler, rewards, prompts, stage.rollout.num_generations, seed)
                metrics = _metrics(groups, stage, evaluation, seed)
                metrics["seconds"] = time.perf_counter() - began
                metrics["tokens_per_second"] = metrics.pop("tokens") / metrics["seconds"]
                log.step(number + 1, metrics | rewards.take_metrics(), _shown(groups, recipe))
                job.add((asdict(group) for group in groups), log.path, log.position())
    _leave(stage, folder, [job.path(n) for n in range(total)], drawn, evaluation, made_of)
    job.left(folder / "data")


def draw(sampler: Sampler, num_tasks: int, seed: int, evaluation: Evaluation) -> Drawn:
    """The first `num_tasks` different training tasks that fit and leak nothing, or all of them."""
    order = TaskOrder(sampler.source, "train", seed)
    passed: Counter[str] = Counter()
    prompts: list[tuple[Prompt, int]] = []
    seen: set[str] = set()
    barren = 0
    while len(prompts) < num_tasks and (
        barren < BARREN if order.size is None else order.position < order.size
    ):
        [(task, visit)] = order.take(1)
        text = prompt_text(task.prompt)
        same, barren = normalized(text), barren + 1
        if same in seen:
            passed["duplicate"] += 1
            continue
        seen.add(same)
        if evaluation.leak(text):
            passed["contaminated"] += 1
            continue
        prompt = sampler.template.render(task)
        if prompt is None:
            passed["overlong"] += 1
            continue
        prompts.append((prompt, visit))
        barren = 0
    if not prompts:
        reasons = ", ".join(f"{name} {n}" for name, n in sorted(passed.items())) or "none drawn"
        raise DataError(
            f"no training task may be sampled ({reasons}): raise data.max_prompt_length where they "
            "are overlong; filter.decontaminate names other tasks than those trained on"
        )
    return Drawn(prompts=prompts, passed=dict(sorted(passed.items())))


def sample(
    sampler: Sampler,
    rewards: RewardSet,
    prompts: Sequence[tuple[Prompt, int]],
    num_generations: int,
    seed: int,
) -> list[Sampled]:
    """Completions of some tasks, scored, in the order of `prompts`."""
    requests = [
        Request(
            uid=str(place),
            ids=prompt.ids,
            n=num_generations,
            sampling=task_sampling(prompt.task, sampler.sampling),
            key=NoiseSplit.TRAIN.key(seed, stable_hash(prompt.task.uid), visit),
        )
        for place, (prompt, visit) in enumerate(prompts)
    ]

    def scored(uid: str, completions: Sequence[Completion]) -> Sampled:
        prompt = prompts[int(uid)][0]
        scores = rewards.score(prompt, completions)
        return _sampled(prompt, requests[int(uid)].key, completions, scores)

    groups = collect(sampler.engine, requests, text=True)
    if not rewards.threadsafe:
        found = {uid: scored(uid, completions) for uid, completions in groups}
    else:
        with ThreadPoolExecutor(max(1, rewards.parallel)) as pool:  # beside the sampling
            waiting = {uid: pool.submit(scored, uid, completions) for uid, completions in groups}
            found = {uid: future.result() for uid, future in waiting.items()}
    return [found[request.uid] for request in requests]


def _sampled(
    prompt: Prompt,
    key: tuple[int, ...],
    completions: Sequence[Completion],
    scores: Sequence[Score],
) -> Sampled:
    return Sampled(
        task=prompt.task.uid,
        prompt=prompt.task.prompt,
        answer=prompt.task.answer,
        noise="/".join(map(str, key)),
        columns=template_columns(prompt.task.columns),
        samples=tuple(
            Sample(
                index=completion.index,
                text=prompt.prefill + completion.text,
                tokens=len(completion) or None,
                finish=completion.finish,
                value=score.value,
            )
            for completion, score in zip(completions, scores, strict=True)
        ),
    )


def _metrics(
    groups: Sequence[Sampled], stage: AnySampling, evaluation: Evaluation, seed: int
) -> Metrics:
    samples = [sample for group in groups for sample in group.samples]
    values = [sample.value for sample in samples if sample.value is not None]
    tokens = float(sum(sample.tokens or 0 for sample in samples))
    screened = [screen(group, stage.filter, evaluation, seed) for group in groups]
    dropped = sum((one.dropped for one in screened), Counter[str]())
    return {
        "reward": sum(values) / len(values) if values else 0.0,
        "completions/mean_length": tokens / len(samples),
        "completions/clipped_ratio": sum(s.finish != "stop" for s in samples) / len(samples),
        "kept": float(sum(len(one.kept) for one in screened)),
        **{f"dropped/{name}": float(dropped[name]) for name in REASONS},
        "tokens": tokens,
    }


def _leave(
    stage: AnySampling,
    folder: Path,
    shards: Sequence[Path],
    drawn: Drawn,
    evaluation: Evaluation,
    made_of: dict[str, Any],
) -> None:
    """`folder/data` from all shards. Raises DataError where nothing is kept."""
    dropped: Counter[str] = Counter()
    counted: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for path in shards:
            for line in read_lines(path):
                samples = tuple(Sample(**sample) for sample in line["samples"])
                group = Sampled(**{**line, "samples": samples})
                screened = screen(group, stage.filter, evaluation, made_of["seed"])
                dropped.update(screened.dropped)
                counted["completions"] += len(samples)
                counted["rows"] += len(screened.kept)
                counted["tasks"] += bool(screened.kept)
                yield from (row(group, sample) for sample in screened.kept)

    def write(aside: Path) -> None:
        durable.write_lines(aside / "train.jsonl", rows())
        counts = _counts(counted, dropped, drawn, evaluation)
        if not counted["rows"]:
            said = ", ".join(f"{name} {n}" for name, n in counts["dropped"].items())
            raise DataError(
                f"stage {stage.name!r} kept none of {counted['completions']} completions ({said}); "
                f"loosen the filter that dropped them, or sample more than rollout.num_generations "
                f"= {stage.rollout.num_generations} of filter.num_tasks = {stage.filter.num_tasks}"
            )
        (aside / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
        settings = {
            name: getattr(stage, name).model_dump(mode="json")
            for name in ("data", "rollout", "filter")
        }
        settings["rewards"] = [spec.model_dump(mode="json") for spec in stage.rewards]
        page = card(stage.name, made_of, counts, settings)
        (aside / "README.md").write_text(page, encoding="utf-8")

    aside = folder / "data.tmp"
    checkpoint.make_folder(aside, write)
    checkpoint.replace(aside, folder / "data")


def _counts(
    counted: Counter[str], dropped: Counter[str], drawn: Drawn, evaluation: Evaluation
) -> dict[str, Any]:
    """What `data/counts.json` says: of completions, tasks, and the sets that may not leak."""
    passed = {f"passed over: {name}": n for name, n in drawn.passed.items()}
    return {
        "rows": counted["rows"],
        "completions": counted["completions"],
        "dropped": {name: dropped[name] for name in REASONS if dropped[name]},
        "tasks": {
            **passed,
            "sampled": len(drawn.prompts),
            "with a kept completion": counted["tasks"],
        },
        "evaluation_sets": {
            name: {"tasks": n, "wording": evaluation.wording[name]}
            for name, n in evaluation.tasks.items()
        },
    }


def _made_of(
    stage: AnySampling, model: str, drawn: Drawn, seed: int, run: Path, shards: Path
) -> dict[str, Any]:
    """What the shards are sampled from, remembered beside them. Raises RunError if it changed."""
    inside = Path(model).is_relative_to(run)  # a model of this run, which may be moved
    made_of = {
        "model": str(Path(model).relative_to(run)) if inside else model,
        "model_hash": provenance.content_hash(model),
        "seed": seed,
        "tasks": provenance.text_hash("\n".join(p.task.uid for p, _ in drawn.prompts)),
        "per_task": stage.rollout.num_generations,
        "per_shard": stage.rollout.prompts_per_step,
    }
    path = shards / MADE_OF
    if path.exists() or any(shards.glob("*.jsonl")):
        try:
            before = manifest.read_sealed(path, shards)
        except Damage as damage:
            raise RunError(
                f"{shards}: {damage}, and it says what the shards were sampled from; put it back "
                "from a copy, or delete the folder to sample anew"
            ) from damage
        for name, value in made_of.items():
            if before[name] != value:
                raise RunError(
                    f"the shards in {str(shards)!r} were sampled with {name} = "
                    f"{before[name]!r}, which is now {value!r}; put it back, or delete the shards"
                )
        return made_of
    shards.mkdir(exist_ok=True)
    durable.sync(shards.parent)
    manifest.write_sealed(path, made_of)
    return made_of


def _shown(groups: Sequence[Sampled], recipe: Recipe) -> list[SampledText]:
    firsts = [(g.prompt, g.samples[0]) for g in groups[: recipe.run.num_samples_logged]]
    return [
        SampledText(label=str(first.value), prompt=str(prompt), completion=first.text)
        for prompt, first in firsts
    ]
