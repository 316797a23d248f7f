"""The rl stage: build the parts, train, evaluate, save, and come back after a kill.

    before -> [step -> ledger -> metrics -> maybe evaluate -> maybe checkpoint]* -> after -> summary

Everything is a function of the recipe and of `checkpoints/`: what a run wrote after its last
checkpoint is moved aside on resume and computed again, to the same bits.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo import checkpoint, heldout, ledger, plugins
from grpo.advantage import ADVANTAGES
from grpo.data import SOURCES
from grpo.data.prompts import PromptTemplate
from grpo.data.source import TaskOrder
from grpo.errors import RunError
from grpo.evaluate import paired_difference
from grpo.learner import TorchLearner
from grpo.log import RunLog
from grpo.loop import Parts, Step, deliver, train
from grpo.rewards import REWARDS
from grpo.rewards.compose import RewardSet
from grpo.rollout import ENGINES
from grpo.schema import RewardSpec, RLStage, Run
from grpo.types import Sampling, TaskSource


@dataclass(frozen=True, kw_only=True)
class Built:
    """A stage's parts with what surrounds them."""

    parts: Parts
    heldout: heldout.HeldOut
    tokenizer: Any
    callbacks: Sequence[Any]


def run(
    stage: RLStage, settings: Run, folder: Path, model_path: str, console: Console
) -> dict[str, Any]:
    """Run the stage in `folder` from its newest checkpoint (or from nothing); its summary.

    The trained model is left in `folder/model`, loadable by `AutoModelForCausalLM` and
    `AutoTokenizer`. Raises KeyboardInterrupt after saving when interrupted.
    """
    built = build(stage, settings, model_path)
    learner, engine = built.parts.learner, built.parts.engine
    start, state = restore(folder, built.parts)
    deliver(learner, engine)
    evaluations = state.get("evaluations", {})
    log = RunLog(
        folder,
        title=stage.name,
        max_steps=stage.learner.max_steps,
        done=start,
        trackers=settings.trackers,
        config=stage.model_dump(mode="json"),
        console=console,
    )

    def measure(name: str) -> None:
        with log.task(f"held-out evaluation ({name})") as progress:
            evaluations[name] = built.heldout.evaluate(
                engine, folder / "eval" / f"{name}.jsonl", progress
            )
        log.say(f"{name}: {_sentence(evaluations[name])}")

    seconds = float(state.get("seconds", 0.0))
    with log, _interruptible(log) as stop:
        if "before" not in evaluations:
            measure("before")
        began = time.perf_counter() - seconds
        paused = 0.0  # evaluations are not training time
        step = start
        for result in train(built.parts, start=start, max_steps=stage.learner.max_steps):
            step = result.step
            last = step == stage.learner.max_steps
            ledger.append(folder / "ledger", step, result.groups, result.advantages_P_G)
            log.step(step, result.metrics, _samples(result, settings.num_samples_logged))
            for callback in built.callbacks:
                callback(result)
            if stage.eval.steps and step % stage.eval.steps == 0 and not last:
                pause = time.perf_counter()
                measure(f"step_{step:06d}")
                paused += time.perf_counter() - pause
            seconds = time.perf_counter() - began - paused
            due = settings.save_steps and step % settings.save_steps == 0
            if due or last or stop():
                _save(folder, step, built, log, settings, evaluations, seconds)
            if stop() and not last:
                raise KeyboardInterrupt
        measure("after")
    _save_model(folder / "model", built)
    summary = _summary(folder, stage, evaluations, seconds, step, settings.seed)
    built.parts.rewards.close()
    built.heldout.rewards.close()
    engine.close()
    return summary


def build(stage: RLStage, settings: Run, model_path: str) -> Built:
    """Wire the parts of a stage from its settings."""
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    source = plugins.load("source", stage.data.source, SOURCES, stage.data.args)
    template = PromptTemplate(
        stage.data.template,
        tokenizer,
        system_prompt=stage.data.system_prompt,
        prefill=stage.data.prefill,
        chat_template_kwargs=stage.data.chat_template_kwargs,
        max_prompt_length=stage.data.max_prompt_length,
        overlong=stage.data.overlong,
    )
    learner = TorchLearner(
        model_path,
        algorithm=stage.algorithm,
        config=stage.learner,
        dtype=stage.model.dtype,
        engine_dtype=stage.rollout.dtype,
        temperature=stage.rollout.temperature,
        seed=settings.seed,
    )
    sampling = _sampling(stage, tokenizer, model_path)
    engine_dtype = getattr(torch, stage.rollout.dtype or stage.model.dtype)
    engine = plugins.find("engine", stage.rollout.engine, ENGINES)(
        AutoModelForCausalLM.from_pretrained(model_path, dtype=engine_dtype),
        tokenizer,
        version=learner.version(),
        max_rows=stage.rollout.max_rows,
    )
    parts = Parts(
        tasks=TaskOrder(source, "train", settings.seed),
        template=template,
        engine=engine,
        rewards=reward_set(stage.rewards),
        learner=learner,
        advantage=plugins.find("advantage", stage.algorithm.advantage, ADVANTAGES),
        sampling=sampling,
        prompts_per_step=stage.rollout.prompts_per_step,
        num_generations=stage.rollout.num_generations,
        loss_type=stage.algorithm.loss_type,
        beta=stage.algorithm.beta,
        mask_truncated=stage.algorithm.mask_truncated_completions,
        num_minibatches=stage.algorithm.num_minibatches,
        seed=settings.seed,
    )
    return Built(
        parts=parts,
        heldout=_heldout(stage, settings, source, template, sampling),
        tokenizer=tokenizer,
        callbacks=[plugins.load("callback", c.name, {}, c.args) for c in stage.callbacks],
    )


def reward_set(specs: Sequence[RewardSpec]) -> RewardSet:
    """The rewards of a recipe, loaded."""
    return RewardSet(
        [
            (spec.label or spec.name, plugins.load("reward", spec.name, REWARDS, spec.args), spec.weight)
            for spec in specs
        ]
    )


def restore(folder: Path, parts: Parts) -> tuple[int, dict[str, Any]]:
    """Put the newest checkpoint's state into `parts`; (steps done, state), (0, {}) without one."""
    found = checkpoint.latest(folder)
    state = found[1] if found else {"step": 0, "metrics_bytes": 0}
    ledger.set_aside(folder / "ledger", after_step=state["step"])
    checkpoint.rewind(folder / "metrics.jsonl", state["metrics_bytes"])
    if found is None:
        return 0, {}
    parts.learner.load(str(found[0]))
    parts.tasks.position = state["position"]
    return state["step"], state


def _save(
    folder: Path,
    step: int,
    built: Built,
    log: RunLog,
    settings: Run,
    evaluations: dict[str, Any],
    seconds: float,
) -> None:
    state = {
        "step": step,
        "position": built.parts.tasks.position,
        "metrics_bytes": log.position(),
        "evaluations": evaluations,
        "seconds": seconds,
    }

    def write(aside: Path) -> None:
        built.parts.learner.save(str(aside))
        built.tokenizer.save_pretrained(aside)

    checkpoint.save(folder, step, write, state, keep=settings.save_total_limit or None)


def _save_model(folder: Path, built: Built) -> None:
    aside = folder.with_suffix(".tmp")
    built.parts.learner.save_model(str(aside))
    built.tokenizer.save_pretrained(aside)
    if folder.exists():
        os.rename(folder, folder.with_suffix(f".{int(time.time())}"))
    os.rename(aside, folder)


def _sampling(stage: RLStage, tokenizer: Any, model_path: str) -> Sampling:
    """The recipe's sampling; a completion ends at any eos of tokenizer or generation config."""
    from transformers import GenerationConfig

    eos: set[int] = {tokenizer.eos_token_id} - {None}
    if (Path(model_path) / "generation_config.json").is_file() or not Path(model_path).exists():
        declared = GenerationConfig.from_pretrained(model_path).eos_token_id
        eos |= set(declared if isinstance(declared, list) else [declared]) - {None}
    if not eos:
        raise RunError(f"the tokenizer of {model_path} names no eos token; completions never end")
    return Sampling(
        temperature=stage.rollout.temperature,
        top_p=stage.rollout.top_p,
        top_k=stage.rollout.top_k,
        min_p=stage.rollout.min_p,
        max_tokens=stage.rollout.max_completion_length,
        stop=stage.rollout.stop,
        eos_ids=tuple(sorted(eos)),
    )


def _heldout(
    stage: RLStage, settings: Run, source: TaskSource, template: PromptTemplate, sampling: Sampling
) -> heldout.HeldOut:
    return heldout.HeldOut(
        prompts=heldout.prepare(source, template, stage.eval.num_tasks),
        rewards=reward_set(stage.eval.rewards or stage.rewards),
        sampling=Sampling(
            temperature=stage.eval.temperature,
            max_tokens=sampling.max_tokens,
            stop=sampling.stop,
            eos_ids=sampling.eos_ids,
        ),
        num_samples=stage.eval.num_samples,
        seed=settings.seed,
    )


def _summary(
    folder: Path,
    stage: RLStage,
    evaluations: dict[str, Any],
    seconds: float,
    step: int,
    seed: int,
) -> dict[str, Any]:
    before, after = evaluations["before"], evaluations["after"]
    rows = [
        [json.loads(line) for line in (folder / "eval" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("before", "after")
    ]
    name = next(iter(rows[0][0]["parts"]))
    values = [heldout.values(lines, name) for lines in rows]
    clusters = [line["cluster"] for line in rows[0] if line["mode"] == "sample"]
    gain, low, high = paired_difference(values[1], values[0], clusters, seed=seed)
    return {
        "stage": stage.name,
        "before": before,
        "after": after,
        "gain": {"pass1": round(gain, 4), "ci": [round(low, 4), round(high, 4)]},
        "during": {k: v for k, v in evaluations.items() if k not in ("before", "after")},
        "steps": step,
        "seconds": round(seconds, 1),
        "model": str(folder / "model"),
    }


def _samples(result: Step, count: int) -> list[str]:
    rollouts = [g.rollouts[0] for g in result.groups[:count]]
    return [f"[{r.score.status}] {r.prompt.text} {r.completion.text}" for r in rollouts]


def _sentence(evaluation: dict[str, Any]) -> str:
    low, high = evaluation["pass1_ci"]
    return (
        f"greedy {evaluation['greedy']:.3f}  pass@1 {evaluation['pass1']:.3f} "
        f"[{low:.3f}, {high:.3f}]  mean length {evaluation['mean_length']:.1f} tokens"
    )


@contextmanager
def _interruptible(log: RunLog) -> Iterator[Any]:
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
