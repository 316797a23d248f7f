"""The rl stage: build the parts, train, evaluate, save, and come back after a kill.

    before -> [step -> ledger -> metrics -> maybe evaluate -> maybe checkpoint]* -> after -> summary

With `eval.keep_best` every evaluated model that beats those before it is kept in `best/` until a
checkpoint no longer needs it, and the best is what the stage leaves.

Everything is a function of the recipe and of `checkpoints/`: what a run wrote after its last
checkpoint is moved aside on resume and computed again, to the same bits.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from grpo import checkpoint, figures, heldout, ledger, plugins
from grpo.errors import RunError
from grpo.evaluate import paired_difference
from grpo.log import RunLog
from grpo.loop import Parts, Step, train
from grpo.ranks import Ranks
from grpo.schema import Recipe, RLStage, Run
from grpo.stages.wiring import Sampler, build_heldout, build_parts, build_rl_sampler

BEST = "best"  # folder of the best models so far, one per evaluation
ROLLOUTS = "rollouts.json.gz"  # batches of a checkpoint that were sampled ahead of their step


def run(
    stage: RLStage,
    recipe: Recipe,
    folder: Path,
    console: Console,
    ranks: Ranks,
) -> dict[str, Any]:
    """Run the stage in `folder` from its newest checkpoint (or from nothing); its summary.

    Of several ranks the first alone evaluates and writes; each samples its share of the prompts.

    The trained model is left in `folder/model`, loadable by `AutoModelForCausalLM` and
    `AutoTokenizer`. Raises KeyboardInterrupt after saving when interrupted.
    """
    sampler = build_rl_sampler(stage, recipe)
    parts = build_parts(stage, recipe, sampler)
    judge = build_heldout(sampler, stage.rewards, stage.eval, recipe.run.seed)
    rollouts = parts.rollouts
    with (
        closing(rollouts.engine),  # closed last
        closing(rollouts.rewards),
        closing(judge.rewards),
        closing(rollouts),
        settled(),
    ):
        return _run(stage, recipe.run, folder, sampler, judge, parts, console, ranks)


def _run(
    stage: RLStage,
    settings: Run,
    folder: Path,
    sampler: Sampler,
    judge: heldout.HeldOut,
    parts: Parts,
    console: Console,
    ranks: Ranks,
) -> dict[str, Any]:
    callbacks = [plugins.load("callback", c.name, {}, c.args) for c in stage.callbacks]
    start, state = restore(folder, parts, ranks)
    parts.rollouts.deliver(parts.learner, start)
    evaluations = state.get("evaluations", {})
    log = RunLog(
        # what other ranks log is the same; it goes nowhere
        folder if ranks.rank == 0 else Path(tempfile.mkdtemp(prefix="grpo-rank-")),
        title=stage.name,
        max_steps=stage.learner.max_steps,
        done=start,
        trackers=settings.trackers if ranks.rank == 0 else (),
        config=stage.model_dump(mode="json"),
        console=console,
    )

    def evaluate(name: str) -> dict[str, Any]:
        with log.task(f"held-out evaluation ({name})") as progress, parts.rollouts.quiet():
            return judge.evaluate(
                parts.rollouts.engine, folder / "eval" / f"{name}.jsonl", progress
            )

    def forget(keep: str | None) -> None:
        for model in (folder / BEST).glob("*") if ranks.rank == 0 else ():
            if model.name != keep:
                shutil.rmtree(model)

    def measure(name: str) -> None:
        found = ranks.on_first(lambda: evaluate(name))
        # Before anything is trained a reward that scores nothing is an error; later it is a figure.
        evaluations[name] = heldout.checked(found) if name == "before" else found
        log.say(f"{name}: {figures.sentence(found)}")
        if stage.eval.keep_best and best(evaluations) == name != "after":
            if ranks.rank == 0:  # a run that was killed in the meantime measures it again
                shutil.rmtree(folder / BEST / name, ignore_errors=True)
            _save_model(folder / BEST / name, parts, sampler)
            if not settings.save_steps:
                forget(keep=name)

    seconds = float(state.get("seconds", 0.0))
    with log, interruptible(log) as stop:
        if "before" not in evaluations:
            measure("before")
        began = time.perf_counter() - seconds
        paused = 0.0  # evaluations are not training time
        step, warned = start, False
        for result in train(parts, start=start, max_steps=stage.learner.max_steps):
            step = result.step
            last = step == stage.learner.max_steps
            if ranks.rank == 0:
                ledger.append(folder / "ledger", step, result.groups, result.advantages_P_G)
                for spec, callback in zip(stage.callbacks, callbacks, strict=True):
                    _call(spec.name, callback, result)
            log.step(step, result.metrics, _samples(result, settings.num_samples_logged))
            if result.warning and not warned:  # once, until it has cleared
                log.say(f"step {step}: {result.warning}")
            warned = bool(result.warning)
            if stage.eval.steps and step % stage.eval.steps == 0 and not last:
                pause = time.perf_counter()
                measure(f"step_{step:06d}")
                paused += time.perf_counter() - pause
            seconds = time.perf_counter() - began - paused
            due = settings.save_steps and step % settings.save_steps == 0
            stopping = any(ranks.gather([stop()]))  # a signal reaches the ranks at different steps
            if due or last or stopping:
                _save(folder, step, parts, sampler, log, settings, evaluations, seconds)
                forget(keep=best(evaluations))  # no checkpoint goes back to the others
            if stopping and not last:
                raise KeyboardInterrupt(f"interrupted; saved at step {step}")
        measure("after")
        kept = best(evaluations) if stage.eval.keep_best else "after"
        choice = _choice(kept, evaluations, step) if stage.eval.keep_best else {}
        if choice:
            log.say(f"kept: {choice['result']}")
    if kept == "after":
        _save_model(folder / "model", parts, sampler)
    elif ranks.rank == 0 and (folder / BEST / kept).exists():
        _move_model(folder / BEST / kept, folder / "model")
    elif ranks.rank == 0 and not (folder / "model").exists():  # else moved before a kill
        raise RunError(f"{folder / BEST / kept}, the best model of this run, is gone; train anew")
    forget(keep=None)
    return ranks.on_first(
        lambda: _summary(folder, evaluations, seconds, step, settings.seed) | choice
    )


@contextmanager
def settled() -> Iterator[None]:
    """Within it, garbage is not looked for among the objects that are there by now.

    Those of libraries and models are some 400,000; walking through them takes 0.2 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def best(evaluations: dict[str, Any]) -> str:
    """The name of the best evaluation by what `figures.decides`; of equal ones, the first made."""
    found = figures.decides(evaluations)
    return max(found, key=lambda name: found[name])


def restore(folder: Path, parts: Parts, ranks: Ranks) -> tuple[int, dict[str, Any]]:
    """Put the newest checkpoint's state into `parts`; (steps done, state), (0, {}) without one."""

    def go_back() -> tuple[Path, dict[str, Any]] | None:
        found = checkpoint.latest(folder)
        state = found[1] if found else {"step": 0, "metrics_bytes": 0}
        ledger.set_aside(folder / "ledger", after_step=state["step"])
        checkpoint.rewind(folder / "metrics.jsonl", state["metrics_bytes"])
        return found

    found = ranks.on_first(go_back)
    if found is None:
        return 0, {}
    state = found[1]
    parts.learner.load(str(found[0]))
    parts.rollouts.wanted.tasks.position = state["position"]
    with gzip.open(found[0] / ROLLOUTS, "rt", encoding="utf-8") as ahead:
        parts.rollouts.restore(json.load(ahead))
    return state["step"], state


def _save(
    folder: Path,
    step: int,
    parts: Parts,
    sampler: Sampler,
    log: RunLog,
    settings: Run,
    evaluations: dict[str, Any],
    seconds: float,
) -> None:
    with parts.rollouts.quiet():
        ahead = json.dumps(parts.rollouts.state()).encode()
        position = parts.rollouts.wanted.tasks.position
    state = {
        "step": step,
        "position": position,
        "metrics_bytes": log.position(),
        "evaluations": evaluations,
        "seconds": seconds,
    }

    def write(aside: Path) -> None:
        parts.learner.save(str(aside))
        sampler.tokenizer.save_pretrained(aside)
        (aside / ROLLOUTS).write_bytes(gzip.compress(ahead, compresslevel=3, mtime=0))

    if parts.learner.rank == 0:
        checkpoint.save(folder, step, write, state, keep=settings.save_total_limit or None)
    else:
        parts.learner.save(str(folder))  # gives its part to the first rank, which writes


def _save_model(folder: Path, parts: Parts, sampler: Sampler) -> None:
    aside = folder.with_suffix(".tmp")
    with checkpoint.disk_errors():
        aside.parent.mkdir(parents=True, exist_ok=True)
        parts.learner.save_model(str(aside))
        if parts.learner.rank:
            return
        sampler.tokenizer.save_pretrained(aside)
        _move_model(aside, folder)


def _move_model(model: Path, folder: Path) -> None:
    if folder.exists():
        os.rename(folder, folder.with_suffix(f".{int(time.time())}"))
    os.rename(model, folder)


def _summary(
    folder: Path,
    evaluations: dict[str, Any],
    seconds: float,
    step: int,
    seed: int,
) -> dict[str, Any]:
    before, after = evaluations["before"], evaluations["after"]
    return {
        "before": before,
        "after": after,
        "gain": _gain(folder / "eval", before["headline"], seed),
        "during": {k: v for k, v in evaluations.items() if k not in ("before", "after")},
        "steps": step,
        "seconds": round(seconds, 1),
        "model": str(folder / "model"),
    }


def _gain(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """What reward `name` rose by, sample by sample: {of, pass1 or mean, ci}, None if unscored."""
    old, new = (heldout.read_lines(folder / f"{when}.jsonl") for when in ("before", "after"))
    both = [*old, *new]
    of = heldout.value_of(both, name)
    before, after = ([of(x) for x in lines if x["mode"] == "sample"] for lines in (old, new))
    clusters = [line["cluster"] for line in old if line["mode"] == "sample"]
    key = "pass1" if heldout.judged(both, name) else "mean"
    if all(None in pair for pair in zip(before, after, strict=True)):
        return {"of": name, key: None, "ci": None}
    gain, low, high = paired_difference(after, before, clusters, seed=seed)
    return {"of": name, key: round(gain, 4), "ci": [round(low, 4), round(high, 4)]}


def _choice(kept: str, evaluations: dict[str, Any], last: int) -> dict[str, Any]:
    """What a summary says of the model that was kept, and of what it was chosen from.

    Its figures are those it was chosen by: the highest of several is too high on average.
    """
    step = {"before": 0, "after": last}.get(kept)
    found = evaluations[kept]
    step = int(kept.removeprefix("step_")) if step is None else step
    change = figures.change(evaluations["before"], found)
    return {
        "best": {"step": step, **found},
        "result": f"{change} at step {step}, the best of {len(evaluations)} evaluations",
    }


def _call(name: str, callback: Any, result: Step) -> None:
    plugins.guard("callback", name, callback, f" (step {result.step})")(result)


def _samples(result: Step, count: int) -> list[str]:
    rollouts = [g.rollouts[0] for g in result.groups[:count]]
    return [f"[{r.score.status}] {r.prompt.text} {r.completion.text}" for r in rollouts]


@contextmanager
def interruptible(log: RunLog) -> Iterator[Any]:
    """First Ctrl-C (or SIGTERM): finish the step, save, stop. Second: stop at once, unsaved."""
    asked: list[int] = []

    def handler(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        log.say("stopping after this step, then saving (interrupt again to stop at once)")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread (a notebook's worker): the caller's handlers stay
        pass
    try:
        yield lambda: bool(asked)
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
