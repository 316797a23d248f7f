"""The rl stage: reinforcement learning with verifiable rewards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from grpo.config.schema.common import (
    Amount,
    Count,
    Data,
    Decay,
    F,
    Index,
    Model,
    Name,
    Plugin,
    Positive,
    RewardSpec,
    Rollout,
    Section,
)
from grpo.method.learning_rate import At, check_curve
from grpo.method.table import (
    ADVANTAGES,
    OBJECTIVES,
    check_advantage_args,
    check_loss_args,
    check_settings,
    least_group,
)


class Schedule(Section):
    """How far sampling runs ahead of learning."""

    mode: Literal["sync", "one_step_off", "async"] = F(
        "sync", "in turns; one whole batch ahead; or continuous, across weight updates"
    )
    max_staleness: Index = F(1, "async: learner steps a batch may be begun ahead of its own")


class Agreement(Section):
    """The gate that compares each engine with the learner."""

    steps: Index = F(25, "steps between checks, the first before training; 0: off")
    max_difference: Positive = F(0.05, "mean |sampler - learner| log-prob allowed, nats per token")
    max_step_difference: Amount = F(
        0.2, "the same over the trained tokens of any step, times 1 + staleness; 0: no limit"
    )
    min_ess: Annotated[float, Field(ge=0, le=1)] = F(
        0.5, "least effective sample size of any step's importance ratios, 0 to 1; 0: no limit"
    )


class Algorithm(Section):
    """The policy-gradient estimator."""

    advantage: str = F("grpo", f"{', '.join(ADVANTAGES)}, or a plug-in")
    advantage_args: dict[str, Any] = F({}, "keyword arguments of the advantage estimator")
    loss_type: str = F("dapo", f"{', '.join(OBJECTIVES)}, or a plug-in")
    loss_args: dict[str, Any] = F({}, "keyword arguments of the objective: docs/objectives.md")
    beta: Amount = F(0.0, "KL coefficient; 0 loads no reference model")
    ref_model_sync_steps: Index = F(
        0, "steps after which the policy becomes the reference, over and over; 0: never"
    )
    epsilon: Positive = F(0.2, "lower clip range of the ratio")
    epsilon_high: Positive | None = F(
        None, "upper clip range; empty: epsilon. cispo: largest ratio, say 5"
    )
    delta: Annotated[float, Field(gt=1)] | None = F(None, "two-sided clip: cap of the ratio")
    num_iterations: Count = F(1, "passes over each rollout batch")
    num_minibatches: Count = F(1, "optimizer steps per pass")
    mask_truncated_completions: bool = F(False, "leave completions cut by length out of the loss")
    sampling_correction: Literal[
        "none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = F("token_truncate", "importance weight for what the sampler computed otherwise (TIS, MIS)")
    sampling_correction_cap: Positive = F(2.0, "largest such weight")

    @model_validator(mode="after")
    def _estimators_take_it(self) -> Algorithm:
        if self.advantage in ADVANTAGES:
            check_advantage_args(self.advantage, self.advantage_args)
        objective = OBJECTIVES.get(self.loss_type)
        if objective is None:  # a plug-in, or unknown
            return self
        check_loss_args(self.loss_type, objective, self.loss_args)
        check_settings(self.loss_type, objective, self)
        return self


class Learner(Section):
    """Optimizer, schedule and how a batch is cut."""

    max_steps: Count = F(100, "rollout batches")
    learning_rate: Positive = F(1e-6, "peak learning rate of AdamW")
    optim: Literal["adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = F(
        "adamw_torch", "AdamW; bitsandbytes': moments in 8 bits, or paged to main memory"
    )
    lr_scheduler_type: Literal[
        "constant",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
    ] = F("constant", "after the warm-up")
    lr_scheduler_kwargs: dict[str, Any] = F({}, "arguments of the curve, named as in transformers")
    lr_scheduler_step: Literal["rollout", "optimizer"] = F(
        "rollout",
        "what the schedule counts: rollout batches; or optimizer steps from a rate of 0, as TRL",
    )
    warmup_steps: Index = F(0, "such steps of linear warm-up")
    weight_decay: Amount = F(0.0, "decoupled weight decay")
    adam_betas: tuple[Decay, Decay] = F((0.9, 0.999), "decay of the first and second moment")
    max_grad_norm: Amount = F(1.0, "gradient norm clip; 0: off")
    tokens_per_micro_batch: Count = F(16384, "tokens of one forward and backward")
    share_prompts: bool = F(True, "run each prompt once for its whole group")
    gradient_checkpointing: bool = F(False, "recompute activations: less memory, more time")

    @model_validator(mode="after")
    def _curve_takes_it(self) -> Learner:
        at = At(step=0, warmup=0, steps=self.max_steps, peak=self.learning_rate)
        check_curve(self.lr_scheduler_type, self.lr_scheduler_kwargs, at)
        return self


class Eval(Section):
    """Held-out evaluation: before training, every `steps` steps, and after training."""

    before: bool = F(True, "evaluate the model before training too; false: no gain is known")
    steps: Index = F(0, "steps between evaluations; 0: only before and after")
    num_tasks: Index = F(200, "held-out tasks; 0: no held-out evaluation at all")
    num_samples: Count = F(4, "completions per task for pass@1, means of rewards and length")
    temperature: Positive = F(1.0, "temperature of those completions")
    keep_best: bool = F(
        False, "the stage's model is the best evaluated one, not the last; needs eval.steps"
    )
    rewards: tuple[RewardSpec, ...] = F(
        (), "reported on held-out tasks, the first verifier as accuracy; empty: the stage's own"
    )

    @property
    def is_off(self) -> bool:
        """Whether the stage asks no held-out tasks at all."""
        return self.num_tasks == 0

    @model_validator(mode="after")
    def _can_run(self) -> Eval:
        for field, wants in (("keep_best", self.keep_best), ("steps", self.steps)):
            if self.is_off and wants:
                raise ValueError(
                    f"eval.{field} = {wants} needs held-out tasks, and eval.num_tasks = 0 asks "
                    f"for none; set eval.num_tasks to 1 or more, or leave eval.{field} out"
                )
        return self


class RLStage(Section):
    """Reinforcement learning with verifiable rewards."""

    kind: Literal["rl"] = "rl"
    name: Name = "rl"
    model: Model
    data: Data
    curriculum: tuple[Plugin, ...] = ()
    rollout: Rollout = Rollout()
    schedule: Schedule = Schedule()
    agreement: Agreement = Agreement()
    rewards: Annotated[tuple[RewardSpec, ...], Field(min_length=1)]
    algorithm: Algorithm = Algorithm()
    learner: Learner = Learner()
    eval: Eval = Eval()
    callbacks: tuple[Plugin, ...] = ()

    @model_validator(mode="after")
    def _can_run(self) -> RLStage:
        rollout, algorithm, learner = self.rollout, self.algorithm, self.learner
        needed = least_group(algorithm.advantage, algorithm.advantage_args)
        if rollout.num_generations < needed:
            raise ValueError(
                f"rollout.num_generations = {rollout.num_generations} leaves no group to compare "
                f"with: algorithm.advantage = {algorithm.advantage!r} needs at least {needed} "
                "(or use algorithm.advantage=none)"
            )
        if rollout.prompts_per_step % algorithm.num_minibatches:  # whole groups are dealt out
            raise ValueError(
                f"algorithm.num_minibatches = {algorithm.num_minibatches} does not divide "
                f"rollout.prompts_per_step = {rollout.prompts_per_step}; "
                f"valid: a divisor of {rollout.prompts_per_step}"
            )
        for field, specs in (("rewards", self.rewards), ("eval.rewards", self.eval.rewards)):
            titles = [spec.title for spec in specs]
            for index, title in enumerate(titles):
                if title in titles[:index]:
                    raise ValueError(
                        f"{field}.{index} has the name {title!r} of {field}.{titles.index(title)}, "
                        f"and metrics are kept by name; give {field}.{index}.label another one"
                    )
        if rollout.workers > 1 and rollout.backend == "local":
            raise ValueError(
                f"rollout.workers = {rollout.workers} needs rollout.backend=ray: one process holds "
                "one engine"
            )
        longest = self.data.max_prompt_length + rollout.longest_completion
        if learner.tokens_per_micro_batch < longest:
            raise ValueError(
                f"learner.tokens_per_micro_batch = {learner.tokens_per_micro_batch} cannot hold "
                f"one row: data.max_prompt_length + rollout.max_completion_length = "
                f"{self.data.max_prompt_length} + {rollout.longest_completion} = {longest}; "
                f"valid: {longest} or more"
            )
        if algorithm.ref_model_sync_steps and not algorithm.beta:
            raise ValueError(
                f"algorithm.ref_model_sync_steps = {algorithm.ref_model_sync_steps} refreshes a "
                "reference that algorithm.beta = 0 does not have; set beta above 0"
            )
        if algorithm.ref_model_sync_steps and self.model.lora.on:
            raise ValueError(
                f"algorithm.ref_model_sync_steps = {algorithm.ref_model_sync_steps} cannot refresh "
                f"the reference of an adapter (model.lora), which is its frozen base; leave one "
                "of them out"
            )
        if self.eval.keep_best and not self.eval.steps:
            raise ValueError(
                "eval.keep_best = True compares the evaluations during training, and eval.steps = "
                "0 asks for none; set eval.steps"
            )
        _check_warmup(learner, algorithm)
        return self


def _check_warmup(learner: Learner, algorithm: Algorithm) -> None:
    """Refuse a warm-up that is longer than the run. Raises ValueError."""
    of_batch = algorithm.num_iterations * algorithm.num_minibatches
    steps = learner.max_steps * (of_batch if learner.lr_scheduler_step == "optimizer" else 1)
    if learner.warmup_steps > steps:
        of = f"{steps} optimizer steps of " if steps > learner.max_steps else ""
        raise ValueError(
            f"learner.warmup_steps = {learner.warmup_steps} is more than the {of}"
            f"learner.max_steps = {learner.max_steps}; valid: 0 to {steps}"
        )
