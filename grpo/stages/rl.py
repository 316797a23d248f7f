"""The rl stage: build the parts, train, evaluate, save, and resume after a kill.

    before -> [step -> ledger -> metrics -> maybe evaluate -> maybe checkpoint]* -> after -> summary

Everything is a function of the recipe and of `checkpoints/`. What a run wrote after its last
checkpoint is moved aside on resume and computed again, to the same bits. `rl_folder` writes the
folder and keeps the best model; `rl_evaluations` has the evaluations.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from grpo.config.schema import Recipe, RLStage, Run
from grpo.errors import PluginError
from grpo.evaluation.heldout import HeldOut
from grpo.model.adapter import described
from grpo.model.ranks import Ranks
from grpo.outside.code import plugins
from grpo.outside.terminal.console import Console
from grpo.outside.terminal.view import SampledText
from grpo.rundir import ledger, record
from grpo.rundir.checkpoint import Checkpoint, Saver
from grpo.rundir.log import RunLog
from grpo.stages.interrupt import interruptible
from grpo.stages.rl_callbacks import EVALUATE, SAVE, STOP, Callbacks
from grpo.stages.rl_evaluations import Evaluations, choice, summary
from grpo.stages.rl_folder import AFTER, BEFORE, RLFolder, drop_models, go_back, restore
from grpo.stages.wiring import build_heldout, build_parts, build_rl_sampler
from grpo.training.loop import Step, train
from grpo.types import Rollout


@dataclass(frozen=True, kw_only=True)
class Training:
    """A stage that is running: its settings, its parts, its evaluations and its checkpoint."""

    stage: RLStage
    settings: Run
    folder: RLFolder
    evaluations: Evaluations
    callbacks: Callbacks  # of stage.callbacks
    log: RunLog
    ranks: Ranks
    found: Checkpoint | None  # the checkpoint it is resumed from
    accepted: int  # how often changes of the stage's inputs were accepted

    @property
    def start(self) -> int:
        """The number of steps that were done before."""
        return self.found.state["step"] if self.found else 0


def run(
    stage: RLStage,
    recipe: Recipe,
    folder: Path,
    console: Console,
    ranks: Ranks,
) -> dict[str, Any]:
    """Run the stage in `folder` from its newest checkpoint (or from nothing); its summary.

    The trained model is left in `folder/model`, for `AutoModelForCausalLM` and `AutoTokenizer`. Of
    several ranks only the first evaluates and writes; each samples its share of the prompts.
    Raises KeyboardInterrupt after saving when interrupted.
    """
    sampler = build_rl_sampler(stage, recipe)
    parts = build_parts(stage, recipe, sampler)
    if stage.model.lora.on:
        console.print(described(cast(Any, parts.learner).model), markup=False, soft_wrap=True)
    judge = build_heldout(sampler, stage.rewards, stage.eval, recipe.run.seed)
    with (
        closing(parts.rollouts.engine),  # closed last
        closing(parts.rollouts.rewards),
        closing(judge.rewards),
        closing(parts.rollouts),
        settled(),
    ):
        files = RLFolder(path=folder, parts=parts, tokenizer=sampler.tokenizer)
        made = _made(stage, recipe.run, files, judge, console, ranks)
        saver = Saver(folder, recipe.run.save_total_limit)
        with made.log, saver, interruptible(made.log) as stop:
            _before(made)
            seconds, steps = _steps(made, saver, stop)
            if not stage.eval.is_off:
                _measure(made, AFTER)
            made.callbacks.tell("end", steps)
            evaluations = made.evaluations.found
            chosen: dict[str, Any] = {}
            if stage.eval.keep_best:
                chosen = choice(made.evaluations.kept, evaluations, steps)
                made.log.say(f"kept: {chosen['result']}")
        files.leave_model(made.evaluations.kept or AFTER)
        return ranks.on_first(
            lambda: summary(folder, evaluations, seconds, steps, recipe.run.seed) | chosen
        )


def _made(
    stage: RLStage, settings: Run, folder: RLFolder, judge: HeldOut, console: Console, ranks: Ranks
) -> Training:
    """The stage at its newest checkpoint, whose weights and batches are not yet restored."""
    callbacks = [(c.name, plugins.load("callback", c.name, c.args)) for c in stage.callbacks]
    accepted = record.accepted(folder.path, stage.name)
    found = ranks.on_first(lambda: go_back(folder.path, settings, console))
    folder.beside.update(found.beside if found else {})
    log = RunLog(
        # what other ranks log is the same; it goes nowhere
        folder.path if ranks.rank == 0 else Path(tempfile.mkdtemp(prefix="grpo-rank-")),
        title=stage.name,
        max_steps=stage.learner.max_steps,
        done=found.state["step"] if found else 0,
        trackers=settings.trackers if ranks.rank == 0 else (),
        config=stage.model_dump(mode="json"),
        console=console,
    )
    # figures of other rows or rewards are not comparable with those to come
    goes_on = found is not None and found.state["accepted"] == accepted
    evaluations = Evaluations(
        judge=judge,
        folder=folder,
        log=log,
        ranks=ranks,
        keep_best=stage.eval.keep_best,
        has_checkpoints=bool(settings.save_steps),
        found=found.state["evaluations"] if found and goes_on else {},
    )
    return Training(
        stage=stage,
        settings=settings,
        folder=folder,
        evaluations=evaluations,
        callbacks=Callbacks(ranks=ranks, found=callbacks),
        log=log,
        ranks=ranks,
        found=found,
        accepted=accepted,
    )


def _before(made: Training) -> None:
    """Evaluate the first model if that is asked for and not done, and restore the checkpoint."""
    parts, found = made.folder.parts, made.found
    made.callbacks.tell("begin", parts, made.start)
    asked = made.stage.eval.before and not made.stage.eval.is_off
    if found and found.state["evaluations"] and not made.evaluations.found:
        then = "starting from a new first" if asked else "they are dropped"
        made.log.say(f"evaluations so far were of other rows or rewards: {then}")
    missing = BEFORE not in made.evaluations.found or bool(found and found.lost)
    if not found or (asked and missing):
        parts.rollouts.deliver(parts.learner, 0)
    if asked and missing:
        _measure(made, BEFORE)
    if found:
        restore(found, parts, made.accepted)
        parts.rollouts.deliver(parts.learner, made.start)


def _steps(made: Training, saver: Saver, stop: Callable[[], bool]) -> tuple[float, int]:
    """Train to the last step, or to the one after which a callback stops.

    Returns the seconds it took, earlier parts of a resumed run included, and the last step. Raises
    KeyboardInterrupt if `stop` says so, after saving the step.
    """
    stage, settings, log, callbacks = made.stage, made.settings, made.log, made.callbacks
    seconds = float(made.found.state["seconds"]) if made.found else 0.0
    began, step, warned = time.perf_counter() - seconds, made.start, False
    steps = train(
        made.folder.parts,
        start=made.start,
        max_steps=made.start if _has_stopped(made) else stage.learner.max_steps,
        begin=lambda number: callbacks.tell("begin_step", number),
    )
    for result in steps:
        step = result.step
        asked = _note(made, result)
        ends = STOP in asked
        last = ends or step == stage.learner.max_steps
        if result.warning and not warned:  # once, until it has cleared
            log.say(f"step {step}: {result.warning}")
        warned = bool(result.warning)
        if not last and (EVALUATE in asked or _is_due(step, stage.eval.steps)):
            pause = time.perf_counter()
            _measure(made, f"step_{step:06d}")
            began += time.perf_counter() - pause  # evaluations are not training time
        seconds = time.perf_counter() - began
        # a signal reaches the ranks at different steps
        stopping = any(made.ranks.gather([stop()]))
        if last or stopping or SAVE in asked or _is_due(step, settings.save_steps):
            _save(made, saver, step, seconds, ends)
        if stopping and not last:
            raise KeyboardInterrupt(f"interrupted; saved at step {step}")
        if ends:
            log.say(f"a callback ended the run at step {step}")
            break
    return seconds, step


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def _has_stopped(made: Training) -> bool:
    """Whether a callback had ended the run at its checkpoint, and it has not been lengthened."""
    ended = made.found.state.get("ended") if made.found else None
    return ended == made.stage.learner.max_steps


def _measure(made: Training, name: str) -> None:
    """Evaluate, and tell the callbacks. Raises PluginError where a callback asks for nothing."""
    if made.stage.eval.is_off:
        raise PluginError(
            "a callback asks for an evaluation, and the run has no held-out tasks "
            "(eval.num_tasks = 0); set eval.num_tasks to 1 or more"
        )
    made.evaluations.measure(name)
    made.callbacks.tell_evaluated(name, made.evaluations.found)


def _note(made: Training, result: Step) -> frozenset[str]:
    """Record a step: write its groups, call the callbacks, log its metrics.

    What the callbacks ask for.
    """
    if made.ranks.rank == 0:
        folder = made.folder.path / "ledger"
        made.folder.wrote(ledger.append(folder, result.step, result.groups, result.advantages_P_G))
    asked = made.callbacks.stepped(result)
    made.log.step(result.step, result.metrics, _samples(made, result))
    return asked


def _samples(made: Training, result: Step) -> list[SampledText]:
    """Some completions of a step: the best and the worst for a view, else those of the log."""
    count = made.settings.num_samples_logged
    if made.log.console.view is None or not count:
        return [_shown(group.rollouts[0]) for group in result.groups[:count]]
    every = [one for group in result.groups for one in group.rollouts]
    scored = sorted(
        (one for one in every if one.score.value is not None),
        key=lambda one: -(one.score.value or 0.0),
    )
    return [_shown(one) for one in (scored[0], scored[-1])] if scored else []


def _shown(rollout: Rollout) -> SampledText:
    status, value = rollout.score.status, rollout.score.value
    label = status if value is None else f"{status} {value:.4g}"
    return SampledText(label=label, prompt=rollout.prompt.text, completion=rollout.completion.text)


def _save(made: Training, saver: Saver, step: int, seconds: float, ends: bool) -> None:
    """A checkpoint of a finished step. ends: a callback ends the run with it."""
    keep = made.evaluations.kept
    drop_models(made.folder.beside, keep)
    state = {
        "step": step,
        "evaluations": made.evaluations.found,
        "seconds": seconds,
        "accepted": made.accepted,
        **({"ended": made.stage.learner.max_steps} if ends else {}),
    }
    made.folder.save(saver, state, made.log)
    made.folder.forget_models(keep)
    made.callbacks.tell("saved", step)


@contextmanager
def settled() -> Iterator[None]:
    """Keep the garbage collector from looking at objects that exist by now.

    Libraries and models have about 400,000 of them, and one walk over these takes 0.2 s.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
