"""Make the objects that run a stage from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from grpo.config.schema import (
    Data,
    DistillStage,
    Eval,
    Model,
    Recipe,
    RejectStage,
    RewardSpec,
    RLStage,
    Rollout,
    Run,
    Schedule,
)
from grpo.data.prompts import PromptTemplate
from grpo.data.source import TaskOrder, stable_hash
from grpo.errors import RecipeError
from grpo.evaluation import heldout
from grpo.learner.learner import TorchLearner
from grpo.method.table import bound_advantage, find_objective
from grpo.model import pretrained
from grpo.model.compute_types import chosen
from grpo.model.ranks import join
from grpo.outside.code import plugins
from grpo.rewards.accuracy import Accuracy
from grpo.rewards.compose import RewardSet
from grpo.rollout import LOADING
from grpo.rollout.pool.ray_pool import ray_pool
from grpo.stages.adapters import adapter_of
from grpo.stages.endings import sampling_of, vocab_size, warn_of_turn_end
from grpo.stages.prompting import check_rows, template_of
from grpo.stages.remote_rewards import RemoteRewards, reward_set
from grpo.training.agreement import AgreementGate
from grpo.training.curriculum import Curriculum
from grpo.training.drawing import RolloutSpec
from grpo.training.loop import TrainerParts
from grpo.training.probes import PROMPTS, Probes
from grpo.training.schedule import RolloutScheduler
from grpo.training.step_limits import StepLimits
from grpo.types import Engine, EngineSpec, Prompt, Sampling, TaskSource, Verifier


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """One model with everything that turns tasks into completions."""

    tokenizer: Any
    source: TaskSource
    template: PromptTemplate
    engine: Engine
    sampling: Sampling
    prompts: Sequence[Prompt]  # held-out


def build_sampler(
    *,
    model: Model,
    data: Data,
    rollout: Rollout,
    recipe: Recipe,
    num_heldout: int = 0,
    engine: Engine | None = None,
) -> Sampler:
    """Tokenizer, tasks, prompts and engine, from the sections of a stage.

    num_heldout: how many held-out tasks to turn into prompts. engine: one that has the model; by
    default one is built that loads it.
    """
    pretrained.check_model(model.path, weights=engine is None and rollout.engine in LOADING)
    tokenizer = pretrained.tokenizer(model.path, chat_template=data.chat_template)
    source = plugins.load("source", data.source, data.args)
    template = template_of(data, tokenizer, model.path, rollout.longest_completion)
    check_rows(source, template)
    prompts = heldout.prepare(source, template, num_heldout) if num_heldout else []
    sampling = sampling_of(rollout, tokenizer, model.path)
    if template.chat is not None:
        warn_of_turn_end(tokenizer, sampling.eos_ids, sampling.stop)
    return Sampler(
        tokenizer=tokenizer,
        source=source,
        template=template,
        sampling=sampling,
        prompts=prompts,
        engine=engine or build_engine(model, data, rollout, recipe),
    )


def build_rl_sampler(stage: RLStage, recipe: Recipe) -> Sampler:
    """The sampler of an rl stage."""
    return build_sampler(
        model=stage.model,
        data=stage.data,
        rollout=stage.rollout,
        recipe=recipe,
        num_heldout=stage.eval.num_tasks,
    )


def build_heldout(
    sampler: Sampler, rewards: Sequence[RewardSpec], settings: Eval, seed: int
) -> heldout.HeldOut:
    """The held-out evaluation of a stage, on the prompts of its sampler."""
    return heldout.HeldOut(
        prompts=sampler.prompts,
        rewards=reward_set(settings.rewards or rewards),
        sampling=replace(
            sampler.sampling, temperature=settings.temperature, top_p=1.0, top_k=0, min_p=0.0
        ),
        num_samples=settings.num_samples,
        seed=seed,
    )


def build_engine(model: Model, data: Data, rollout: Rollout, recipe: Recipe) -> Engine:
    """The engine of a stage: in this process, or a pool of Ray actors."""
    length = data.max_prompt_length + rollout.longest_completion
    spec = EngineSpec(
        model=model.path,
        dtype=chosen(rollout.dtype or model.dtype),
        max_length=min(length, pretrained.positions(model.path) or length),
        seed=recipe.run.seed,
        threads=recipe.run.threads,
        lora=adapter_of(model),
        quantization=model.quantization,
    )
    if rollout.backend == "ray":
        return ray_pool(
            engine=rollout.engine,
            engine_args=rollout.engine_args,
            spec=spec,
            workers=rollout.workers,
            address=recipe.ray.address,
            timeout=recipe.ray.timeout,
        )
    return load_engine(rollout.engine, rollout.engine_args, spec)


def load_engine(name: str, args: Mapping[str, Any], spec: EngineSpec) -> Engine:
    """An engine of the dict, or a plug-in, in this process."""
    return plugins.load("engine", name, {**args, "spec": spec})


def build_rewards(stage: RLStage | RejectStage | DistillStage, recipe: Recipe) -> RewardSet:
    """The rewards of a stage: in this process, or in Ray actors.

    Raises RecipeError where several processes would each remember a part of the run, RewardError
    for a memory that no checkpoint can keep.
    """
    elsewhere = stage.rollout.backend == "ray" and bool(recipe.ray.verifiers)
    here = reward_set(stage.rewards)
    remembered = sorted(here.state())
    if remembered and (elsewhere or join().count > 1):
        here.close()
        where = "ray.verifiers" if elsewhere else "several learner ranks"
        raise RecipeError(
            f"reward {remembered[0]!r} remembers earlier steps (it has state_dict), and with "
            f"{where} each process would remember only what it scored itself; score in one process"
        )
    if elsewhere:
        here.close()
        return RemoteRewards(stage.rewards, recipe.ray.verifiers)
    return here


def training_seed(stage: RLStage, recipe: Recipe) -> int:
    """The seed of a stage's task order and sampling noise: run.seed for the first rl stage.

    Later ones get one of their own, or they would meet the same tasks with the same noise.
    """
    first = next(other for other in recipe.stages if isinstance(other, RLStage))
    if stage.name == first.name:
        return recipe.run.seed
    return stable_hash("stage", recipe.run.seed, stage.name) % 2**31


def build_spec(stage: RLStage, recipe: Recipe, sampler: Sampler) -> RolloutSpec:
    """What every batch of a stage asks for."""
    seed, ranks = training_seed(stage, recipe), join()
    return RolloutSpec(
        tasks=TaskOrder(sampler.source, "train", seed),
        template=sampler.template,
        sampling=sampler.sampling,
        prompts_per_step=stage.rollout.prompts_per_step,
        num_generations=stage.rollout.num_generations,
        seed=seed,
        oversample=stage.rollout.oversample,
        max_rounds=stage.rollout.max_rounds,
        mine=lambda place: place % ranks.count == ranks.rank,
        curriculum=build_curriculum(stage, staleness_of(stage.schedule)),
        length_at=None
        if isinstance(stage.rollout.max_completion_length, int)
        else stage.rollout.completion_length,
        names=getattr(sampler.source, "names", ()),
        vocab_size=vocab_size(stage.model.path),
    )


def build_rollouts(
    stage: RLStage, recipe: Recipe, engine: Engine, spec: RolloutSpec
) -> RolloutScheduler:
    """The scheduler, which gives scored batches from the engine."""
    types = {chosen(stage.model.dtype), chosen(stage.rollout.dtype or stage.model.dtype)}
    return RolloutScheduler(
        spec,
        engine,
        build_rewards(stage, recipe),
        last=stage.learner.max_steps,
        staleness=staleness_of(stage.schedule),
        in_flight="continue" if stage.schedule.mode == "async" else "finish",
        precision="float32" if types == {"float32"} else "bfloat16",
        colocated=stage.rollout.backend == "local" and torch.cuda.is_available(),
    )


def staleness_of(schedule: Schedule) -> int:
    """Learner steps by which the weights that sample a batch may be behind."""
    return {"sync": 0, "one_step_off": 1, "async": schedule.max_staleness}[schedule.mode]


def build_curriculum(stage: RLStage, staleness: int) -> Curriculum | None:
    """The rules by which tasks are passed over; None without any."""
    rules = [
        (rule.name.rpartition(":")[2], plugins.load("curriculum", rule.name, rule.args))
        for rule in stage.curriculum
    ]
    return Curriculum(rules, staleness) if rules else None


def build_gate(stage: RLStage, settings: Run, sampler: Sampler) -> AgreementGate | None:
    """The agreement gate on held-out prompts, or else training ones; None where it is off."""
    if not stage.agreement.steps:
        return None
    return AgreementGate(
        probes=Probes(
            prompts=sampler.prompts or _training_prompts(sampler),
            sampling=sampler.sampling,
            seed=settings.seed,
            vocab_size=vocab_size(stage.model.path),
        ),
        steps=stage.agreement.steps,
        max_difference=stage.agreement.max_difference,
        decode=sampler.tokenizer.decode,
    )


def _training_prompts(sampler: Sampler) -> list[Prompt]:
    """Training prompts for the gate of a stage that asks no held-out tasks; none is counted."""
    counts = dict(sampler.template.counts)
    prompts = heldout.prepare(sampler.source, sampler.template, PROMPTS, "train")
    sampler.template.counts.update(counts)
    return prompts


def build_parts(stage: RLStage, recipe: Recipe, sampler: Sampler) -> TrainerParts:
    """Everything that the training loop needs."""
    settings = recipe.run
    torch.manual_seed(settings.seed)
    spec = build_spec(stage, recipe, sampler)
    rollouts = build_rollouts(stage, recipe, sampler.engine, spec)
    return TrainerParts(
        spec=spec,
        rollouts=rollouts,
        gate=build_gate(stage, settings, sampler),
        limits=StepLimits(
            difference=stage.agreement.max_step_difference,
            ess=stage.agreement.min_ess,
            staleness=staleness_of(stage.schedule),
        ),
        learner=TorchLearner(
            stage.model.path,
            algorithm=stage.algorithm,
            config=stage.learner,
            dtype=chosen(stage.model.dtype),
            engine_dtype=chosen(stage.rollout.dtype or stage.model.dtype),
            lora=adapter_of(stage.model),
            quantization=stage.model.quantization,
            temperature=stage.rollout.temperature,
            truncation=sampler.sampling if sampler.sampling.truncates else None,
            seed=settings.seed,
        ),
        advantage=bound_advantage(
            stage.algorithm.advantage,
            stage.algorithm.advantage_args,
            reward_weights={name: weight for name, _, weight in rollouts.rewards.rewards},
            tokenizer=sampler.tokenizer,
        ),
        loss_type=find_objective(stage.algorithm.loss_type, stage.algorithm.loss_args),
        beta=stage.algorithm.beta,
        mask_truncated=stage.algorithm.mask_truncated_completions,
        num_minibatches=stage.algorithm.num_minibatches,
        second=_second(stage.rewards, rollouts.rewards.judges),
    )


def _second(specs: Sequence[RewardSpec], judges: Sequence[str]) -> Verifier | None:
    """The verifier that checks the first one: exact comparison of the last answer or number.

    It costs little and shares no parser with `math`. None where the first verifier judges no single
    answer. judges: the titles of the rewards that say right or wrong.
    """
    first = next((spec.name for spec in specs if spec.title in judges[:1]), None)
    return Accuracy(extraction="lenient") if first in ("accuracy", "math") else None
