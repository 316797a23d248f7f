"""Optimizers of the learner by TRL's names: AdamW, and bitsandbytes' versions with small states.

And the learning rate of a step.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from grpo.errors import RecipeError
from grpo.method.learning_rate import At, share_of_peak
from grpo.model.devices import choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from grpo.config.schema import Learner as LearnerConfig

# 8 bits: moments in blocks of 256 with a scale each (Dettmers et al. 2022, 2110.02861); tensors of
# fewer than 4,096 numbers stay in 32. Paged: a GPU moves moments to main memory under pressure.
BITSANDBYTES = {
    "adamw_bnb_8bit": "AdamW8bit",
    "paged_adamw_32bit": "PagedAdamW",
    "paged_adamw_8bit": "PagedAdamW8bit",
}


def make_optimizer(
    model: PreTrainedModel, config: LearnerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer `learner.optim` names, over what is trained: matrices decay, the rest does not.

    Raises RecipeError where bitsandbytes is not installed.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    lr, betas = config.learning_rate, config.adam_betas
    if config.optim not in BITSANDBYTES:
        fused = choices(device).fused_optimizer
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
    try:
        found = importlib.import_module("bitsandbytes").optim
    except ImportError as error:
        raise RecipeError(
            f"learner.optim = {config.optim!r} needs bitsandbytes: "
            "pip install 'grpo-toolkit[quantize]'"
        ) from error
    return getattr(found, BITSANDBYTES[config.optim])(groups, lr=lr, betas=betas)


def check_sharding(quantization: str, optim: str) -> None:
    """Raise RecipeError for what FSDP2 cannot split over ranks."""
    if quantization != "none" or optim in BITSANDBYTES:
        raise RecipeError(
            f"model.quantization = {quantization!r} and learner.optim = {optim!r} keep tensors "
            "that FSDP2 cannot shard; valid there: none, adamw_torch"
        )


def learning_rate(config: LearnerConfig, step: int, update: int = 0, updates: int = 1) -> float:
    """The rate of an optimizer step: a linear warm-up, then the curve of `lr_scheduler_type`.

    step: rollout batch, from 0; update: optimizer step within it, of `updates`. With
    `lr_scheduler_step` = "rollout" all of a batch have one rate, and the first is above 0. With
    "optimizer" each has its own, as transformers' scheduler gives it: the first of a warm-up is 0.
    """
    steps, first = config.max_steps, 1
    if config.lr_scheduler_step == "optimizer":
        step, steps, first = step * updates + update, steps * updates, 0
    if step < config.warmup_steps:
        return config.learning_rate * (step + first) / config.warmup_steps
    at = At(step=step, warmup=config.warmup_steps, steps=steps, peak=config.learning_rate)
    share = share_of_peak(config.lr_scheduler_type, config.lr_scheduler_kwargs, at)
    return config.learning_rate * share


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make `rate` the learning rate of the next optimizer step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
