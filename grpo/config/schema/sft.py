"""The sft stage: supervised fine-tuning on prompt-completion rows, with trl.SFTTrainer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from grpo.config.schema.common import (
    CHAT_TEMPLATE,
    Count,
    F,
    Index,
    Model,
    Name,
    Positive,
    Section,
    Share,
    check_chat_template,
)


class SFTData(Section):
    """Rows with the columns `prompt` and `completion` (text, or message lists)."""

    path: str = F(..., "JSONL file, folder of a data set, hub id, or stage:NAME of reject/distill")
    template: Literal["r1_zero", "chat", "raw"] = F("raw", "how a row's prompt becomes text")
    template_args: dict[str, Any] = F(
        {}, "system_prompt, prefill, chat_template_kwargs and date, as in an rl stage"
    )
    chat_template: str = F("", CHAT_TEMPLATE)
    mix: dict[str, Annotated[float, Field(gt=0, lt=1)]] = F(
        {}, "other rows (paths as above) and the share of the training rows they make up"
    )

    @model_validator(mode="after")
    def _shows_its_template(self) -> SFTData:
        check_chat_template(self.template, self.chat_template)
        return self


class SFTLearner(Section):
    """AdamW on completion tokens, cosine decay to a tenth of the peak (R1: 5e-5 to 5e-6)."""

    num_train_epochs: Positive = F(2.0, "passes over the rows")
    max_steps: Index = F(0, "optimizer steps; 0: as num_train_epochs says")
    learning_rate: Positive = F(5e-5, "peak learning rate, after a warm-up of 3% of the steps")
    batch_size: Count = F(32, "rows (packed: sequences of max_length) per optimizer step")
    max_length: Count = F(2048, "tokens of a row; longer ones are dropped and counted")
    packing: bool = F(False, "fill sequences with several rows, which do not see one another")


class SLM(Section):
    """Selective language modeling (Rho-1, arXiv 2404.07965): learn from part of the tokens."""

    select: Literal["off", "excess", "random", "highest"] = F(
        "off", "tokens of highest loss above the reference's; or, as controls, others"
    )
    reference: str = F("", "excess: model trained on clean rows, path or stage:NAME")
    keep: Share = F(0.6, "share of a batch's completion tokens that is trained on")


class SFTStage(Section):
    """Cold start, or any other supervised stage."""

    kind: Literal["sft"] = "sft"
    name: Name = "sft"
    model: Model
    data: SFTData
    learner: SFTLearner = SFTLearner()
    slm: SLM = SLM()

    @model_validator(mode="after")
    def _can_run(self) -> SFTStage:
        if (self.slm.select == "excess") != bool(self.slm.reference):
            raise ValueError(
                f"slm.select = {self.slm.select!r} with slm.reference = {self.slm.reference!r}: "
                "excess, and no other, needs a reference model"
            )
        total = sum(self.data.mix.values())
        if total >= 1:
            raise ValueError(
                f"data.mix has shares that add up to {total:g}, which leaves nothing for data.path "
                f"= {self.data.path!r}; valid: less than 1 in all"
            )
        return self
