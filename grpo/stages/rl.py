"""The rl stage: build the parts, train, evaluate, save, and come back after a kill.

    before -> [step -> ledger -> metrics -> maybe evaluate -> maybe checkpoint]* -> after -> summary

With `eval.keep_best` every evaluated model that beats those before it is kept in `best/` until a
checkpoint no longer needs it, and the best is what the stage leaves.

Everything is a function of the recipe and of `checkpoints/`: what a run wrote after its last
checkpoint is moved aside on resume and computed again, to the same bits. A checkpoint knows by hash
what it needs beside it; the evaluation of the first model can be made again.
"""

from __future__ import annotations

import gc
import gzip
import json
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

from grpo import checkpoint, figures, hashes, heldout, ledger, litter, plugins, record
from grpo.adapter import described
from grpo.checkpoint import BEST, Found
from grpo.console import Console
from grpo.evaluate import paired_difference
from grpo.hashes import Known
from grpo.log import RunLog
from grpo.loop import Step, TrainerParts, train
from grpo.ranks import Ranks
from grpo.schema import Recipe, RLStage, Run
from grpo.stages.wiring import Sampler, build_heldout, build_parts, build_rl_sampler

BEFORE = "before"  # the evaluation of the model that training starts from
AGAIN = (f"eval/{BEFORE}.", f"{BEST}/{BEFORE}/")  # what can be made again from that model
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
    if stage.model.lora_rank:
        console.print(described(cast(Any, parts.learner).model), markup=False, soft_wrap=True)
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
    parts: TrainerParts,
    console: Console,
    ranks: Ranks,
) -> dict[str, Any]:
    callbacks = [plugins.load("callback", c.name, {}, c.args) for c in stage.callbacks]
    accepted = record.accepted(folder, stage.name)
    found = ranks.on_first(lambda: go_back(folder, settings, console))
    start, state = (found.state["step"], found.state) if found else (0, {})
    beside = found.beside if found else {}  # what was written so far, for the next checkpoint
    # figures of other rows or rewards are not put beside those to come
    is_same = not found or state["accepted"] == accepted
    evaluations = state.get("evaluations", {}) if is_same else {}
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

    def wrote(*files: Path) -> None:
        beside.update(hashes.known(folder, files) if ranks.rank == 0 else {})

    def current() -> str:
        return best(evaluations) if stage.eval.keep_best else ""

    def forget() -> None:
        if ranks.rank == 0:
            forget_models(folder, current(), beside)

    def measure(name: str) -> None:
        found = ranks.on_first(lambda: evaluate(name))
        # Before anything is trained a reward that scores nothing is an error; later it is a figure.
        evaluations[name] = heldout.checked(found) if name == BEFORE else found
        wrote(folder / "eval" / f"{name}.jsonl")
        log.say(f"{name}: {figures.sentence(found)}")
        if stage.eval.keep_best and best(evaluations) == name != "after":
            _save_model(folder / BEST / name, parts, sampler)
            wrote(*(path for path in (folder / BEST / name).rglob("*") if path.is_file()))
            if not settings.save_steps:
                forget()

    seconds = float(state.get("seconds", 0.0))
    saver = checkpoint.Saver(folder, settings.save_total_limit)
    with log, saver, interruptible(log) as stop:
        if not is_same:
            log.say("evaluations so far were of other rows or rewards: starting from a new first")
        if BEFORE not in evaluations or (found and found.lost):
            parts.rollouts.deliver(parts.learner, 0)
            measure(BEFORE)
        if found:
            restore(found, parts, accepted)
            parts.rollouts.deliver(parts.learner, start)
        began = time.perf_counter() - seconds
        paused = 0.0  # evaluations are not training time
        step, warned = start, False
        for result in train(parts, start=start, max_steps=stage.learner.max_steps):
            step = result.step
            last = step == stage.learner.max_steps
            if ranks.rank == 0:
                wrote(ledger.append(folder / "ledger", step, result.groups, result.advantages_P_G))
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
                drop_models(beside, current())
                state = {"step": step, "evaluations": evaluations, "seconds": seconds}
                _save(saver, state | {"accepted": accepted}, parts, sampler, log, beside)
                forget()
            if stopping and not last:
                raise KeyboardInterrupt(f"interrupted; saved at step {step}")
        measure("after")
        kept = best(evaluations) if stage.eval.keep_best else "after"
        choice = _choice(kept, evaluations, step) if stage.eval.keep_best else {}
        if choice:
            log.say(f"kept: {choice['result']}")
    if kept == "after":
        _save_model(folder / "model", parts, sampler)
    elif ranks.rank == 0 and (folder / BEST / kept).exists():  # else moved before a kill
        checkpoint.replace(folder / BEST / kept, folder / "model")
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


def go_back(folder: Path, settings: Run, console: Console) -> Found | None:
    """The checkpoint to go on from, with what was written after it moved aside.

    Raises RunError where there are checkpoints and none is whole.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    found = checkpoint.latest(folder, say, AGAIN)
    step, size = (found.state["step"], found.beside[checkpoint.LOG][0]) if found else (0, 0)
    ledger.set_aside(folder / "ledger", after_step=step)
    checkpoint.rewind(folder / checkpoint.LOG, size)
    removed: list[Path] = []
    if found and settings.save_total_limit:
        removed += checkpoint.beyond(folder, settings.save_total_limit, newest=step)
    kept = checkpoint.models(folder)
    removed += [model for model in (folder / BEST).glob("*") if model.name not in kept]
    litter.clear(folder, console, removed)
    return found


def restore(found: Found, parts: TrainerParts, accepted: int) -> None:
    """Put a checkpoint's state into `parts`.

    accepted: how often changes of the stage's inputs were. Batches of a checkpoint from before the
    last one are sampled anew.
    """
    parts.learner.load(str(found.folder))
    with gzip.open(found.folder / ROLLOUTS, "rt", encoding="utf-8") as ahead:
        is_same = found.state["accepted"] == accepted
        parts.rollouts.restore(json.load(ahead), found.state["position"], keep_batches=is_same)


def drop_models(beside: Known, keep: str) -> None:
    """Leave out the best models that are none any more: a checkpoint does without them.

    One that is about to be whole would else need models that are removed with the one before it.
    """
    for name in [name for name in beside if name.startswith(f"{BEST}/")]:
        if name.split("/")[1] != keep:
            del beside[name]


def forget_models(folder: Path, keep: str, beside: Known) -> None:
    """Remove the best models that are none any more, but those that a checkpoint goes back to."""
    drop_models(beside, keep)
    needed = {keep, *checkpoint.models(folder)}
    for model in (folder / BEST).glob("*"):
        if model.name not in needed:
            checkpoint.remove(model)


def _save(
    saver: checkpoint.Saver,
    state: dict[str, Any],
    parts: TrainerParts,
    sampler: Sampler,
    log: RunLog,
    beside: Known,
) -> None:
    with parts.rollouts.quiet():
        ahead = json.dumps(parts.rollouts.state()).encode()
        position = parts.rollouts.position

    def write(aside: Path) -> None:
        parts.learner.save(str(aside))
        sampler.tokenizer.save_pretrained(aside)
        (aside / ROLLOUTS).write_bytes(gzip.compress(ahead, compresslevel=3, mtime=0))

    if parts.learner.rank:
        parts.learner.save(str(saver.run))  # gives its part to the first rank, which writes
        return
    so_far = {checkpoint.LOG: hashes.start_of(log.path, log.position())}
    saver.save(state["step"], write, {**state, "position": position}, {**beside, **so_far})


def _save_model(folder: Path, parts: TrainerParts, sampler: Sampler) -> None:
    aside = folder.with_suffix(".tmp")

    def write(place: Path) -> None:
        parts.learner.save_model(str(place))
        sampler.tokenizer.save_pretrained(place)

    if parts.learner.rank:
        parts.learner.save_model(str(aside))  # gives its part to the first rank, which writes
        return
    checkpoint.make_folder(aside, write)
    checkpoint.replace(aside, folder)


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
    old, new = heldout.shared(old, new)
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
