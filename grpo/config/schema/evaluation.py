"""The eval stage: models of the pipeline side by side on the same held-out tasks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grpo.config.schema.common import (
    Count,
    Data,
    Dtype,
    F,
    Name,
    Positive,
    RewardSpec,
    Section,
    Share,
)


class EvalStage(Section):
    """Accuracy, length and every other reward of several models, with intervals."""

    kind: Literal["eval"] = "eval"
    name: Name = "eval"
    models: Annotated[tuple[str, ...], Field(min_length=1)] = F(
        ..., "stage:NAME of earlier stages, folders or hub ids, in the order of the table"
    )
    baseline: str = F("", "one of models, which the others are compared with; empty: the first")
    dtype: Dtype = F("auto", "compute type; auto: as model.dtype of a stage that trains")
    data: Data
    rewards: Annotated[tuple[RewardSpec, ...], Field(min_length=1)]
    num_tasks: Count = F(200, "held-out tasks")
    num_samples: Count = F(4, "completions per task: pass@1 or a reward is their mean")
    max_completion_length: Count = F(256, "completion tokens")
    temperature: Positive = F(0.6, "of those completions (R1: 0.6)")
    top_p: Share = F(0.95, "nucleus mass (R1: 0.95)")
    engine: str = F("torch", "engine that samples")

    @model_validator(mode="after")
    def _can_run(self) -> EvalStage:
        if self.baseline and self.baseline not in self.models:
            raise ValueError(
                f"baseline = {self.baseline!r} is not one of models; valid: "
                f"{', '.join(self.models)}"
            )
        titles = [spec.title for spec in self.rewards]
        for index, title in enumerate(titles[1:], 1):
            if title in titles[:index]:
                raise ValueError(
                    f"rewards.{index} has the name {title!r} of rewards.{titles.index(title)}; "
                    f"give rewards.{index}.label another one"
                )
        return self
