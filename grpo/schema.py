"""The recipe schema: every setting with its type, default, unit and meaning, and nothing else.

Names are TRL's where the meaning is TRL's. Unknown keys are refused; combinations that cannot run
are refused here, before torch is imported. A new kind of stage is one class and one line in STAGES.
`grpo.config.load` reads a YAML file into these classes and words the errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from grpo.errors import unknown_name

Dtype = Literal["float32", "bfloat16", "float16"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
# No dots in a stage's name: overrides address stage.section.key.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Title = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

# grpo/objective.py holds the functions; their names and those of the arguments that loss_args may
# give them are repeated here because it imports torch.
_SHARED = ("kl_estimator", "off_policy_mask_threshold", "top_entropy_quantile", "entropy_coef")
_LEVEL = (*_SHARED, "importance_sampling_level")
LOSS_TYPES: dict[str, tuple[str, ...]] = {
    "grpo": _LEVEL,
    "dr_grpo": _LEVEL,
    "dapo": _LEVEL,
    "bnpo": _LEVEL,
    "gspo": _SHARED,
    "luspo": _SHARED,
    "cispo": _LEVEL,
    "sapo": (*_LEVEL, "sapo_temperature_pos", "sapo_temperature_neg"),
    "vespo": (*_SHARED, "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"),
}

# Completions per prompt without which an advantage is 0 for every completion.
LEAST_GROUP = {
    "grpo": 2,
    "dr_grpo": 2,
    "rloo": 2,
    "batch": 2,
    "reinforce_plus_plus_baseline": 2,
    "maxrl": 2,
    "pass@2": 3,
    "pass@4": 5,
    "pass@8": 9,
}


def F(default: Any, description: str) -> Any:
    """A field with its one-line description (shown in error messages)."""
    return Field(default, description=description)


class Section(BaseModel):
    """Frozen settings; an unknown key is an error, never a setting that silently does nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Plugin(Section):
    """`name`, `package.module:attr` or `path/file.py:attr`, with keyword arguments for it."""

    name: str = F(..., "built-in name, package.module:attr, or path/file.py:attr")
    args: dict[str, Any] = F({}, "keyword arguments, checked against the plug-in's signature")


class RewardSpec(Plugin):
    """One reward; the score of a completion is the weighted sum over rewards."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = F(1.0, "factor in the weighted sum")
    label: str = F("", "name in metrics; empty: the plug-in's name")

    @property
    def title(self) -> str:
        """What metrics call it: the label, or the name without module or file."""
        return self.label or self.name.rpartition(":")[2]


class Run(Section):
    """What all stages share."""

    dir: str = F("", "folder the run is written to; empty: runs/<recipe name>")
    seed: Index = F(0, "seed of weights, task order and sampling noise")
    threads: Index = F(0, "CPU threads in all; 0: every core")
    trackers: tuple[Tracker, ...] = F((), "trackers that accelerate feeds beside metrics.jsonl")
    save_steps: Index = F(50, "steps between checkpoints; 0: only the last one")
    save_total_limit: Index = F(2, "newest checkpoints kept; 0: all")
    num_samples_logged: Index = F(2, "completions shown per step in the live view")


class Ray(Section):
    """Where rollout workers live when rollout.backend is ray."""

    address: str = F("", "cluster to join, say 'auto' or ray://head:10001; empty: this machine")
    timeout: Positive = F(600.0, "seconds a worker may go without an answer before it is replaced")
    verifiers: Index = F(0, "processes that score training completions; 0: the driver scores")


class Model(Section):
    """The policy the stage starts from."""

    path: str = F(..., "local folder, Hugging Face hub id, or stage:NAME of an earlier stage")
    dtype: Dtype = F("float32", "compute type; master weights are always float32")
    lora_rank: Index = F(0, "rank of a LoRA adapter on every linear layer; 0: train all weights")


class Data(Section):
    """Tasks and how they become prompts."""

    source: str = F(..., "task source: built-in name, package.module:attr, or path/file.py:attr")
    args: dict[str, Any] = F({}, "keyword arguments of the source")
    template: Literal["r1_zero", "chat", "raw"] = F("r1_zero", "how a task becomes prompt text")
    template_args: dict[str, Any] = F(
        {}, "system_prompt, prefill (say '<think>\\n') and chat_template_kwargs of the template"
    )
    max_prompt_length: Count = F(512, "prompt tokens")
    overlong: Literal["drop", "truncate", "error"] = F("drop", "what happens to longer prompts")


class Rollout(Section):
    """How groups of completions are sampled."""

    engine: str = F("torch", "rollout engine: built-in name, package.module:attr, or file.py:attr")
    engine_args: dict[str, Any] = F({}, "keyword arguments of the engine")
    workers: Count = F(1, "engines; more than one need rollout.backend=ray")
    backend: Literal["local", "ray"] = F("local", "where engines run: this process, or Ray actors")
    prompts_per_step: Count = F(32, "prompts sampled per step")
    num_generations: Count = F(8, "completions per prompt (the group size G)")
    max_completion_length: Count = F(256, "completion tokens")
    temperature: Positive = F(1.0, "softmax temperature of sampling; the loss uses the same")
    top_p: Share = F(1.0, "nucleus mass; 1: off")
    top_k: Index = F(0, "most likely tokens kept; 0: off")
    min_p: Annotated[float, Field(ge=0, le=1)] = F(0.0, "floor relative to the likeliest; 0: off")
    stop: tuple[str, ...] = F((), "strings that end a completion (kept in it)")
    dtype: Dtype | None = F(None, "type the engine computes in; empty: model.dtype")
    oversample: Annotated[float, Field(ge=1, le=4)] = F(
        1.0, "prompts begun per prompt needed; the slowest are canceled when enough are done"
    )
    max_rounds: Count = F(1, "sampling rounds a step, until enough groups are informative; 1: off")


class Schedule(Section):
    """How far sampling runs ahead of learning."""

    mode: Literal["sync", "one_step_off", "async"] = F(
        "sync", "in turns; one whole batch ahead; or continuous, across weight updates"
    )
    max_staleness: Index = F(1, "async: learner steps a batch may be begun ahead of its own")


class Parity(Section):
    """The gate that compares each engine with the learner."""

    steps: Index = F(25, "steps between checks, the first before training; 0: off")
    max_difference: Positive = F(0.05, "mean |sampler - learner| log-prob allowed, nats per token")


class Algorithm(Section):
    """The policy-gradient estimator."""

    advantage: str = F(
        "grpo", "group baseline: built-in name, package.module:attr, or file.py:attr"
    )
    loss_type: str = F(
        "dapo", "grpo, dr_grpo, dapo, bnpo, gspo, luspo, cispo, sapo, vespo, or a plug-in"
    )
    loss_args: dict[str, Any] = F({}, "keyword arguments of the objective: docs/objectives.md")
    beta: Amount = F(0.0, "KL coefficient; 0 loads no reference model")
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
    def _objective_takes_it(self) -> Algorithm:
        loss = f"algorithm.loss_type = {self.loss_type!r}"
        for name in self.loss_args if self.loss_type in LOSS_TYPES else ():
            if name not in LOSS_TYPES[self.loss_type]:
                valid = LOSS_TYPES[self.loss_type]
                raise ValueError(unknown_name(f"argument of {loss}:", name, valid))
        unused = {"cispo": ("delta",), "sapo": ("epsilon_high", "delta")}
        unused["vespo"] = unused["sapo"]
        for name in unused.get(self.loss_type, ()):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{loss} does not use algorithm.{name} = {getattr(self, name)}; leave it out"
                )
        if self.loss_type == "cispo" and self.epsilon_high is None:
            raise ValueError(
                f"{loss} needs algorithm.epsilon_high, the largest ratio a token may count by "
                "(ScaleRL uses 5)"
            )
        if self.loss_type == "vespo" and self.sampling_correction.startswith("sequence"):
            raise ValueError(
                f"{loss} multiplies ratios over the completion itself: algorithm."
                f"sampling_correction = {self.sampling_correction!r} would do so twice; "
                "valid: none, token_truncate, token_mask"
            )
        return self


class Learner(Section):
    """Optimizer, schedule and how a batch is cut."""

    max_steps: Count = F(100, "rollout batches")
    learning_rate: Positive = F(1e-6, "peak learning rate of AdamW")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = F("constant", "after the warm-up")
    warmup_steps: Index = F(0, "steps of linear warm-up")
    weight_decay: Amount = F(0.0, "decoupled weight decay")
    adam_betas: tuple[Decay, Decay] = F((0.9, 0.999), "decay of the first and second moment")
    max_grad_norm: Amount = F(1.0, "gradient norm clip; 0: off")
    tokens_per_micro_batch: Count = F(16384, "tokens of one forward and backward")
    share_prompts: bool = F(True, "run each prompt once for its whole group")
    gradient_checkpointing: bool = F(False, "recompute activations: less memory, more time")


class Eval(Section):
    """Held-out evaluation: before and after always, and every `steps` steps."""

    steps: Index = F(0, "steps between evaluations; 0: only before and after")
    num_tasks: Count = F(200, "held-out tasks")
    num_samples: Count = F(4, "completions per task for pass@1 and mean length")
    temperature: Positive = F(1.0, "temperature of those completions")
    rewards: tuple[RewardSpec, ...] = F(
        (), "verifiers reported on held-out tasks, the first as accuracy; empty: the stage's own"
    )


class RLStage(Section):
    """Reinforcement learning with verifiable rewards."""

    kind: Literal["rl"] = "rl"
    name: Name = "rl"
    model: Model
    data: Data
    rollout: Rollout = Rollout()
    schedule: Schedule = Schedule()
    parity: Parity = Parity()
    rewards: Annotated[tuple[RewardSpec, ...], Field(min_length=1)]
    algorithm: Algorithm = Algorithm()
    learner: Learner = Learner()
    eval: Eval = Eval()
    callbacks: tuple[Plugin, ...] = ()

    @model_validator(mode="after")
    def _can_run(self) -> RLStage:
        rollout, algorithm, learner = self.rollout, self.algorithm, self.learner
        needed = LEAST_GROUP.get(algorithm.advantage, 1)
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
        longest = self.data.max_prompt_length + rollout.max_completion_length
        if learner.tokens_per_micro_batch < longest:
            raise ValueError(
                f"learner.tokens_per_micro_batch = {learner.tokens_per_micro_batch} cannot hold "
                f"one row: data.max_prompt_length + rollout.max_completion_length = "
                f"{self.data.max_prompt_length} + {rollout.max_completion_length} = {longest}; "
                f"valid: {longest} or more"
            )
        if learner.warmup_steps > learner.max_steps:
            raise ValueError(
                f"learner.warmup_steps = {learner.warmup_steps} is more than learner.max_steps = "
                f"{learner.max_steps}; valid: 0 to {learner.max_steps}"
            )
        return self


class PretrainModel(Section):
    """Size of a model made from nothing; the tokenizer is one token per character."""

    architecture: Literal["llama", "qwen2"] = F("llama", "Hugging Face model family")
    hidden_size: Count = F(128, "width of the residual stream")
    num_layers: Count = F(4, "transformer blocks")
    num_heads: Count = F(4, "attention heads")
    num_kv_heads: Count | None = F(None, "key/value heads; empty: num_heads")
    intermediate_size: Count = F(512, "width of the MLP")
    max_position: Count = F(512, "longest sequence in tokens")

    @model_validator(mode="after")
    def _heads_divide(self) -> PretrainModel:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.num_heads = {self.num_heads} does not divide model.hidden_size = "
                f"{self.hidden_size}"
            )
        if self.num_heads % (self.num_kv_heads or self.num_heads):
            raise ValueError(
                f"model.num_kv_heads = {self.num_kv_heads} does not divide model.num_heads = "
                f"{self.num_heads}"
            )
        return self


class PretrainData(Section):
    """Text to pretrain on."""

    source: str = F(..., "task source whose tasks carry a worked answer")
    args: dict[str, Any] = F({}, "keyword arguments of the source")


class PretrainLearner(Section):
    """AdamW with linear warm-up and cosine decay."""

    max_steps: Count = F(300, "optimizer steps")
    batch_size: Count = F(256, "sequences per optimizer step")
    learning_rate: Positive = F(1e-3, "peak learning rate")
    warmup_steps: Index = F(20, "steps of linear warm-up")
    weight_decay: Amount = F(0.01, "decoupled weight decay")


class PretrainStage(Section):
    """A tiny base model from scratch."""

    kind: Literal["pretrain"] = "pretrain"
    name: Name = "pretrain"
    model: PretrainModel = PretrainModel()
    data: PretrainData
    learner: PretrainLearner = PretrainLearner()


STAGES: dict[str, type[RLStage] | type[PretrainStage]] = {"rl": RLStage, "pretrain": PretrainStage}
Stage = Annotated[RLStage | PretrainStage, Field(discriminator="kind")]


class Recipe(Section):
    """A named list of stages, run in order."""

    name: Title
    run: Run = Run()
    ray: Ray = Ray()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @property
    def run_dir(self) -> str:
        """Where the run is written: run.dir, or runs/<name>."""
        return self.run.dir or f"runs/{self.name}"

    @model_validator(mode="after")
    def _stages_connect(self) -> Recipe:
        earlier: list[str] = []
        for stage in self.stages:
            if stage.name in earlier or stage.name in {"run", "ray", "name"}:
                raise ValueError(
                    f"stage name {stage.name!r} is taken; give each stage its own name"
                )
            path = stage.model.path if isinstance(stage, RLStage) else ""
            if path.startswith("stage:") and path.removeprefix("stage:") not in earlier:
                valid = ", ".join(f"stage:{name}" for name in earlier) or "none (it is the first)"
                raise ValueError(
                    f"model.path = {path!r} of stage {stage.name!r} is not an earlier stage; "
                    f"valid: {valid}"
                )
            earlier.append(stage.name)
        return self
