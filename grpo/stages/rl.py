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
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from grpo.config.schema import Recipe, RLStage, Run
from grpo.evaluation.heldout import HeldOut
from grpo.model.adapter import described
from grpo.model.ranks import Ranks
from grpo.outside.code import plugins
from grpo.outside.terminal.console import Console
from grpo.rundir import ledger, record
from grpo.rundir.checkpoint import Checkpoint, Saver
from grpo.rundir.log import RunLog
from grpo.stages.interrupt import interruptible
from grpo.stages.rl_evaluations import Evaluations, choice, summary
from grpo.stages.rl_folder import AFTER, BEFORE, RLFolder, drop_models, go_back, restore
from grpo.stages.wiring import build_heldout, build_parts, build_rl_sampler
from grpo.training.loop import Step, train


@dataclass(frozen=True, kw_only=True)
class Training:
    """A stage that is running: its settings, its parts, its evaluations and its checkpoint."""

    stage: RLStage
    settings: Run
    folder: RLFolder
    evaluations: Evaluations
    callbacks: Sequence[Any]  # of stage.callbacks
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
    if stage.model.lora_rank:
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
            seconds = _steps(made, saver, stop)
            made.evaluations.measure(AFTER)
            evaluations, steps = made.evaluations.found, stage.learner.max_steps
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
    callbacks = [plugins.load("callback", c.name, c.args) for c in stage.callbacks]
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
        callbacks=callbacks,
        log=log,
        ranks=ranks,
        found=found,
        accepted=accepted,
    )


def _before(made: Training) -> None:
    """Evaluate the first model if that is not done, and restore the checkpoint, if any."""
    parts, found = made.folder.parts, made.found
    if found and found.state["accepted"] != made.accepted:
        made.log.say("evaluations so far were of other rows or rewards: starting from a new first")
    if BEFORE not in made.evaluations.found or (found and found.lost):
        parts.rollouts.deliver(parts.learner, 0)
        made.evaluations.measure(BEFORE)
    if found:
        restore(found, parts, made.accepted)
        parts.rollouts.deliver(parts.learner, made.start)


def _steps(made: Training, saver: Saver, stop: Callable[[], bool]) -> float:
    """Train to the last step; the seconds it took, earlier parts of a resumed run included.

    Raises KeyboardInterrupt if `stop` says so, after saving the step.
    """
    stage, settings, log = made.stage, made.settings, made.log
    seconds = float(made.found.state["seconds"]) if made.found else 0.0
    began = time.perf_counter() - seconds
    warned = False
    for result in train(made.folder.parts, start=made.start, max_steps=stage.learner.max_steps):
        step = result.step
        last = step == stage.learner.max_steps
        _note(made, result)
        if result.warning and not warned:  # once, until it has cleared
            log.say(f"step {step}: {result.warning}")
        warned = bool(result.warning)
        if stage.eval.steps and step % stage.eval.steps == 0 and not last:
            pause = time.perf_counter()
            made.evaluations.measure(f"step_{step:06d}")
            began += time.perf_counter() - pause  # evaluations are not training time
        seconds = time.perf_counter() - began
        due = settings.save_steps and step % settings.save_steps == 0
        # a signal reaches the ranks at different steps
        stopping = any(made.ranks.gather([stop()]))
        if due or last or stopping:
            _save(made, saver, step, seconds)
        if stopping and not last:
            raise KeyboardInterrupt(f"interrupted; saved at step {step}")
    return seconds


def _note(made: Training, result: Step) -> None:
    """Record a step: write its groups, call the callbacks, log its metrics."""
    if made.ranks.rank == 0:
        folder = made.folder.path / "ledger"
        made.folder.wrote(ledger.append(folder, result.step, result.groups, result.advantages_P_G))
        for spec, callback in zip(made.stage.callbacks, made.callbacks, strict=True):
            where = f" (step {result.step})"
            plugins.guard("callback", spec.name, callback, where)(result)
    rollouts = [g.rollouts[0] for g in result.groups[: made.settings.num_samples_logged]]
    samples = [f"[{r.score.status}] {r.prompt.text} {r.completion.text}" for r in rollouts]
    made.log.step(result.step, result.metrics, samples)


def _save(made: Training, saver: Saver, step: int, seconds: float) -> None:
    """A checkpoint of a finished step."""
    keep = made.evaluations.kept
    drop_models(made.folder.beside, keep)
    state = {
        "step": step,
        "evaluations": made.evaluations.found,
        "seconds": seconds,
        "accepted": made.accepted,
    }
    made.folder.save(saver, state, made.log)
    made.folder.forget_models(keep)


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
