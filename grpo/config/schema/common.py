"""What stages of every kind are written with: types of values, sections, plug-ins."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
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


def F(default: Any, description: str) -> Any:
    """A field with its one-line description (shown in error messages)."""
    return Field(default, description=description)


def _lengths(value: object) -> int | dict[int, int]:
    """A number of tokens, or {step: tokens} with whole numbers for keys (text in JSON)."""
    field = f"rollout.max_completion_length = {value!r}"
    steps = cast("dict[object, object]", value) if isinstance(value, dict) else {1: value}
    found: dict[int, int] = {}
    for step, length in steps.items():
        if not str(step).isdigit():
            raise ValueError(f"{field}: {step!r} is no step; write {{1: 8192, 1001: 16384}}")
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ValueError(f"{field}: completion tokens should be a whole number, 1 or more")
        found[int(str(step))] = length
    if min(found, default=0) != 1:
        raise ValueError(f"{field}: the first length should be that of step 1")
    return dict(sorted(found.items())) if isinstance(value, dict) else found[1]


Lengths = Annotated[int | dict[int, int], BeforeValidator(_lengths)]


CHAT_TEMPLATE = "chat template, as text or path, in place of the tokenizer's; saved with the model"


def check_chat_template(template: str, chat_template: str) -> None:
    """Refuse a chat template that nothing would be written with. Raises ValueError."""
    if chat_template and template != "chat":
        raise ValueError(
            f"data.chat_template needs data.template = 'chat', not {template!r}, which writes "
            "prompts without it"
        )


class Section(BaseModel):
    """Frozen settings; an unknown key is an error, never a setting that silently does nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Plugin(Section):
    """`name`, `package.module:attr` or `path/file.py:attr`, with keyword arguments for it.

    Without arguments, the name alone will do.
    """

    name: str = F(..., "built-in name, package.module:attr, or path/file.py:attr")
    args: dict[str, Any] = F({}, "keyword arguments, checked against the plug-in's signature")

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        """A text alone is the name: `rewards: [accuracy]`."""
        return {"name": value} if isinstance(value, str) else value


class RewardSpec(Plugin):
    """One reward; the score of a completion is the weighted sum over rewards."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = F(1.0, "factor in the weighted sum")
    label: str = F("", "name in metrics; empty: the plug-in's name")
    timeout: Positive = F(600.0, "seconds that one call, of a whole group, may take; then it fails")

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
    """The cluster of rollout workers (rollout.backend=ray), learner ranks and verifiers."""

    address: str = F("", "cluster to join, say 'auto' or ray://head:10001; empty: this machine")
    timeout: Positive = F(600.0, "seconds a worker may go without an answer before it is replaced")
    learners: Count = F(1, "learner ranks, each an actor with a device of its own; 1: the driver")
    verifiers: Index = F(0, "processes that score training completions; 0: the driver scores")


def _targets(value: object) -> str | tuple[str, ...]:
    """all-linear or a regex as text, or a list of names."""
    entries: list[object] = (
        list(cast("list[object]", value)) if isinstance(value, list | tuple) else [value]
    )
    names = [entry for entry in entries if isinstance(entry, str) and entry]
    if not entries or len(names) < len(entries):
        raise ValueError(
            f"model.lora.target_modules = {value!r}; valid: all-linear, a regex that matches whole "
            "names of layers, or a list of names such as [q_proj, v_proj]"
        )
    if isinstance(value, list | tuple):
        return tuple(names)
    try:
        re.compile(names[0])
    except re.error as error:
        raise ValueError(f"model.lora.target_modules = {value!r} is no regex: {error}") from error
    return names[0]


class Lora(Section):
    """A LoRA adapter, which is trained in place of the weights.

    As in peft, whose `r` and `lora_alpha` are `rank` and `alpha` here, inside of `lora`. Its other
    names are kept.
    """

    rank: Index = F(0, "columns of A and B; 0: train all weights, or as `adapter` has it")
    alpha: Positive | None = F(None, "scale of B A, over the rank; empty: twice the rank")
    target_modules: Annotated[str | tuple[str, ...], BeforeValidator(_targets)] = F(
        "all-linear", "linear layers but the head and routers; or their names, or a regex"
    )
    use_rslora: bool = F(False, "scale by alpha / sqrt(rank), for large ranks")
    use_dora: bool = F(False, "train the norm of each row of the weight as well (DoRA)")
    adapter: str = F("", "folder of the peft adapter to start from, which says all of the above")

    @property
    def on(self) -> bool:
        """Whether an adapter is trained."""
        return bool(self.rank or self.adapter)

    @model_validator(mode="before")
    @classmethod
    def _without_dropout(cls, data: Any) -> Any:
        for name in ("dropout", "lora_dropout"):
            if isinstance(data, dict) and name in data:
                raise ValueError(
                    f"model.lora.{name} = {data[name]!r}: there is no dropout here, as the policy "
                    "that learns would not be the one that sampled; leave it out"
                )
        return cast(Any, data)

    @model_validator(mode="after")
    def _has_a_rank(self) -> Lora:
        given = sorted(
            name for name, value in self if value != type(self).model_fields[name].default
        )
        if given and not self.on:
            raise ValueError(
                f"model.lora.{given[0]} does nothing without model.lora.rank, which is 0; set the "
                "rank, or model.lora={} to train all weights"
            )
        if self.adapter.startswith("stage:"):
            raise ValueError(
                f"model.lora.adapter = {self.adapter!r} should be a folder; the model of an "
                "earlier stage has its adapter merged in, so model.path=stage:NAME goes on from it"
            )
        return self


class Model(Section):
    """The policy the stage starts from."""

    path: str = F(..., "local folder, Hugging Face hub id, or stage:NAME of an earlier stage")
    dtype: Dtype = F(
        "auto",
        "compute type; auto: float32 on a CPU, bfloat16 on a GPU that has it, else float16; master "
        "weights are always float32",
    )
    lora: Lora = Lora()
    quantization: Literal["none", "nf4"] = F("none", "of the base under an adapter (nf4: QLoRA)")

    @model_validator(mode="after")
    def _has_an_adapter(self) -> Model:
        if self.quantization != "none" and not self.lora.on:
            raise ValueError(
                f"model.quantization = {self.quantization!r} needs model.lora.rank: four-bit "
                "weights are not trained themselves"
            )
        if self.quantization != "none" and self.lora.use_dora:
            raise ValueError(
                f"model.lora.use_dora = true with model.quantization = {self.quantization!r}: DoRA "
                "needs the norms of the unpacked base at each step; leave one of them out"
            )
        return self


class Data(Section):
    """Tasks and how they become prompts."""

    source: str = F(..., "task source: built-in name, package.module:attr, or path/file.py:attr")
    args: dict[str, Any] = F({}, "keyword arguments of the source")
    template: Literal["r1_zero", "chat", "raw"] = F("r1_zero", "how a task becomes prompt text")
    template_args: dict[str, Any] = F(
        {},
        "system_prompt, prefill (say '<think>\\n'), chat_template_kwargs and date of the template",
    )
    chat_template: str = F("", CHAT_TEMPLATE)
    max_prompt_length: Count = F(512, "prompt tokens")
    overlong: Literal["drop", "truncate", "error"] = F("drop", "what happens to longer prompts")

    @model_validator(mode="after")
    def _shows_its_template(self) -> Data:
        check_chat_template(self.template, self.chat_template)
        return self


class Rollout(Section):
    """How groups of completions are sampled."""

    engine: str = F("torch", "rollout engine: built-in name, package.module:attr, or file.py:attr")
    engine_args: dict[str, Any] = F({}, "keyword arguments of the engine")
    workers: Count = F(1, "engines; more than one need rollout.backend=ray")
    backend: Literal["local", "ray"] = F("local", "where engines run: this process, or Ray actors")
    prompts_per_step: Count = F(32, "prompts sampled per step")
    num_generations: Count = F(8, "completions per prompt (the group size G)")
    max_completion_length: Lengths = F(
        256, "completion tokens; or {step: tokens}, each from that step on, the first at step 1"
    )
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

    @property
    def longest_completion(self) -> int:
        """The greatest length of any step: what engines and learner have to hold."""
        length = self.max_completion_length
        return length if isinstance(length, int) else max(length.values())

    def completion_length(self, step: int) -> int:
        """The greatest length at `step`, from 1."""
        length = self.max_completion_length
        if isinstance(length, int):
            return length
        return length[max(start for start in length if start <= step)]
