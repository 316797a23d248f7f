"""The reject stage: sample, verify, keep the best (R1's rejection sampling)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grpo.config.schema.common import (
    Count,
    Data,
    F,
    Index,
    Model,
    Name,
    RewardSpec,
    Rollout,
    Section,
)

Fraction = Annotated[float, Field(ge=0, le=1)]


class Filter(Section):
    """What is kept of the completions; every one dropped is counted by its reason."""

    num_tasks: Count = F(1000, "training tasks sampled, rollout.num_generations completions each")
    min_reward: Annotated[float, Field(allow_inf_nan=False)] = F(1.0, "least weighted score")
    min_pass_rate: Fraction = F(0.0, "tasks with a smaller share of correct completions are left")
    max_pass_rate: Fraction = F(1.0, "tasks with a larger share are left out: too easy")
    keep: Count = F(1, "completions kept per task")
    select: Literal["first", "shortest", "diverse", "random"] = F(
        "random", "which of the good ones"
    )
    language: str = F("", "ISO code the thought has to be written in; empty: any")
    min_language: Fraction = F(0.95, "least share of its words in that language")
    max_repetition: Fraction = F(0.2, "largest share of 8-grams that repeat an earlier one")
    max_paragraph: Index = F(0, "longest paragraph of the thought, in characters; 0: any")
    code_blocks: bool = F(True, "whether the thought may hold code blocks (R1: no)")
    decontaminate: tuple[str, ...] = F((), "JSONL files or task sources that may not leak in")
    ngram: Count = F(10, "words in a row shared with one of those that count as leaked")

    @model_validator(mode="after")
    def _has_a_band(self) -> Filter:
        if self.min_pass_rate > self.max_pass_rate:
            raise ValueError(
                f"filter.min_pass_rate = {self.min_pass_rate} is above "
                f"filter.max_pass_rate = {self.max_pass_rate}"
            )
        return self


class RejectStage(Section):
    """Completions of a model on training tasks, filtered: rows for an sft stage."""

    kind: Literal["reject"] = "reject"
    name: Name = "reject"
    model: Model
    data: Data
    rollout: Rollout = Rollout()
    rewards: Annotated[tuple[RewardSpec, ...], Field(min_length=1)]
    filter: Filter = Filter()
