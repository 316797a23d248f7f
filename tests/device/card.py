"""A learner on `meta` that takes itself for one on a card."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from grpo.attention import interface
from grpo.config.schema import Algorithm
from grpo.config.schema import Learner as Config
from grpo.learner import learner, optimizers, policy
from grpo.learner.learner import TorchLearner
from grpo.model import devices, ranks, transfer

from .counting import CARD

H200 = 139 * 2**30  # bytes
T4 = 15 * 2**30
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "pad_token_id": 2,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
MODELS: dict[str, Any] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def make_learner(
    patch: pytest.MonkeyPatch,
    *,
    model: str = "llama",
    sizes: dict[str, Any] | None = None,
    memory: int = H200,
    flex: bool = False,
    algorithm: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **settings: Any,
) -> TorchLearner:
    """A learner of a tiny model; what is patched has to last as long as it is used."""
    _pretend(patch, memory, flex)
    kind, sized = MODELS[model]
    with torch.device(CARD):
        made = kind(sized(**SIZES | (sizes or {})))
    return TorchLearner(
        made, algorithm=Algorithm(**algorithm or {}), config=Config(**config or {}), **settings
    )


def _pretend(patch: pytest.MonkeyPatch, memory: int, flex: bool) -> None:
    """Whatever asks what kind of device there is takes `meta` for a card."""
    autocast = torch.autocast

    def no_autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        if device_type == CARD.type:  # has none; a cast would stay on the card
            return contextlib.nullcontext()
        return autocast(device_type, *args, **kwargs)

    patch.setattr(torch, "autocast", no_autocast)
    patch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    one: Any = SimpleNamespace(process_index=0, num_processes=1, device=CARD)
    patch.setattr(ranks, "join", lambda: ranks.Ranks(accelerator=one, sharding=None))
    patch.setattr(transfer, "pins", lambda device: device.type == CARD.type)
    patch.setattr(devices, "card_memory", lambda _: memory)
    # What starting a learner compares is numbers.
    patch.setattr(learner, "check_model", lambda _: None)
    patch.setattr(learner, "can_share_prompts", lambda _: True)
    patch.setattr(policy, "check_peft", lambda *_: None)
    # On a card one kernel updates all weights.
    fused = replace(devices.choices(CARD), fused_optimizer=True)
    patch.setattr(optimizers, "choices", lambda _: fused)
    patch.setattr(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: [CARD.type])
    if flex:
        patch.setattr(interface, "uses_flex", lambda *_: True)
        patch.setattr(interface, "attend_in_blocks", _something)


def _something(query: Tensor, key: Tensor, value: Tensor, blocks: Any, scale: float) -> Tensor:
    """Of the shape of attention and with gradients for all; the kernel is compiled on a card."""
    del blocks, scale
    times = query.shape[1] // key.shape[1]
    return (query + (key + value).repeat(1, times, 1, 1)).transpose(1, 2)
