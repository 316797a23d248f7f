"""The distill stage: a teacher's verified completions, or its logits on them, teach a student."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grpo.config.schema.common import Data, F, Model, Name, RewardSpec, Rollout, Section
from grpo.config.schema.reject import Filter
from grpo.config.schema.sft import SFTLearner


class Teacher(Section):
    """Who is learned from."""

    path: str = F(..., "folder, hub id, stage:NAME, or http://HOST/v1 of a server (OpenAI's API)")
    model: str = F("", "name of the model on that server; empty: the first it lists")
    api_key_env: str = F("OPENAI_API_KEY", "environment variable that holds the server's key")

    @property
    def is_endpoint(self) -> bool:
        """Whether the teacher is a server with OpenAI's API."""
        return self.path.startswith(("http://", "https://"))


class DistillStage(Section):
    """Sample from the teacher, verify, fine-tune the student on what passed."""

    kind: Literal["distill"] = "distill"
    name: Name = "distill"
    teacher: Teacher
    model: Model
    data: Data
    rollout: Rollout = Rollout()
    rewards: Annotated[tuple[RewardSpec, ...], Field(min_length=1)]
    filter: Filter = Filter()
    learner: SFTLearner = SFTLearner()
    method: Literal["sequence", "logits"] = F(
        "sequence",
        "learn the kept completions, or the teacher's distribution at each of their tokens",
    )
    shuffle_answers: bool = F(False, "control: every prompt gets another prompt's completion")

    @model_validator(mode="after")
    def _can_run(self) -> DistillStage:
        if self.method == "logits" and self.teacher.is_endpoint:
            raise ValueError(
                f"method = 'logits' needs the teacher's weights, and teacher.path = "
                f"{self.teacher.path!r} is a server; name a model, or use method=sequence"
            )
        if self.method == "logits" and self.shuffle_answers:
            raise ValueError(
                "shuffle_answers is the control of method=sequence: with method = 'logits' the "
                "teacher would still answer at every token; leave one of them out"
            )
        return self
