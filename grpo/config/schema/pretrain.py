"""The pretrain stage: a tiny base model from nothing."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from grpo.config.schema.common import Amount, Count, F, Index, Name, Positive, Section


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
