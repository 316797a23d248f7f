"""Log-probs of a micro-batch under a policy: the only forward pass the learner makes.

Only the positions that predict a trained token reach the language-model head (`grpo/head.py`).
Log-probs are those of the distribution that was sampled, in float32: logits / temperature, with the
same top-k, top-p and min-p as the sampler's where those are on.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grpo.batch import MicroBatch, Pack
from grpo.head import Transform, output_head, token_logprobs, token_surprise
from grpo.repeated import rows_at
from grpo.shared_attention import IMPLEMENTATION, make_layout
from grpo.types import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether completions of one prompt may lie in a flat row behind it.

    Needs full attention by transformers' attention interface in every layer, and rotary or learned
    positions that can be restarted. Sliding windows, chunked or linear attention and state-space
    layers see a row as one sequence, so such models read one completion per row.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if len(kinds) == 1 else None
    return (
        config._attn_implementation in ("sdpa", IMPLEMENTATION)
        and kinds == {"full_attention"}
        and (window is None or not getattr(config, "use_sliding_window", True))
        and not getattr(model, "_is_stateful", False)
        and getattr(model, "_supports_attention_backend", False)
        and "position_ids" in inspect.signature(model.base_model.forward).parameters
        and _layout_arrives(model)
    )


@torch.no_grad()
def _layout_arrives(model: PreTrainedModel) -> bool:
    """Whether two completions after one prompt come out as they do by themselves.

    The layout travels to the attention as a keyword, which a model is free to drop.
    """
    ids = torch.tensor([[0, 0, 1, 0, 1, 0]], device=model.device)  # prompt 0; 0 1; 0 1 0
    packs = (Pack(start=0, prompt=1, completions=((1, 2), (3, 3))),)
    positions = torch.tensor([[0, 1, 2, 1, 2, 3]], device=model.device)
    try:
        shared = _flat_hidden_states(model, ids, positions, packs)[0].float()
    except (TypeError, ValueError):  # a keyword refused
        return False
    plain = model.base_model(input_ids=torch.cat([ids[:, :1], ids[:, 3:]], 1), use_cache=False)[0]
    expected = torch.cat([plain[0, :3], plain[0, 1:]]).float()
    return torch.allclose(shared, expected, rtol=5e-2, atol=5e-2 * float(expected.abs().max()))


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout to 0: with dropout the learner scores a policy that never sampled."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # pyright: ignore[reportArgumentType]


def _hidden_states(model: PreTrainedModel, micro_batch: MicroBatch, device: torch.device) -> Tensor:
    """[R * L, D] outputs of the last layer, after its norm."""
    ids = torch.from_numpy(micro_batch.ids).to(device)
    if micro_batch.packs:
        positions = torch.from_numpy(micro_batch.positions).to(device)
        hidden = _flat_hidden_states(model, ids, positions, micro_batch.packs)
    else:
        # Right-padded and causal: no real token can see the padding, so no mask is needed.
        hidden = model.base_model(input_ids=ids, use_cache=False)[0]
    return hidden.flatten(0, 1)


def _flat_hidden_states(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, packs: tuple[Pack, ...]
) -> Tensor:
    """[1, L, D]; see `grpo/shared_attention.py`, which is transformers' own without a layout.

    So the model keeps it: with gradient checkpointing it is called again in the backward pass.
    """
    model.config._attn_implementation = IMPLEMENTATION
    # A mask that hides nothing: made by the model, it would be one of all pairs of tokens.
    return model.base_model(
        input_ids=ids,
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device),
        position_ids=positions,
        use_cache=False,
        shared_layout=make_layout(packs, ids.device),
    )[0]


def completion_logprobs(
    model: PreTrainedModel,
    micro_batch: MicroBatch,
    temperature: float,
    want_entropy: bool,
    truncation: Sampling | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] of the trained tokens and entropies [N] in nats, both with gradient.

    float32, or float64 for a float64 model. Temperature 0 (greedy) counts as 1. `truncation`:
    the filters that the tokens were drawn with.
    """
    logp_N, entropy_N = token_logprobs(
        output_head(model),
        *_trained_positions(model, micro_batch),
        Transform.of(model, temperature, truncation),
    )
    return logp_N, entropy_N if want_entropy else None


@torch.no_grad()
def completion_surprise(
    model: PreTrainedModel,
    micro_batch: MicroBatch,
    temperature: float,
    truncation: Sampling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [N] of the trained tokens, and what -log p should be: its mean and variance [N].

    The mean is the entropy of the next-token distribution. Over tokens that were drawn from it,
    sum(-log p - mean) / sqrt(sum(variance)) is a standard normal number for a sampler that draws
    what it says (`grpo/parity.py`).
    """
    return token_surprise(
        output_head(model),
        *_trained_positions(model, micro_batch),
        Transform.of(model, temperature, truncation),
    )


def _trained_positions(model: PreTrainedModel, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] that predict the trained tokens, and those tokens [N]."""
    sources_N = torch.from_numpy(micro_batch.sources).to(model.device)
    targets_N = torch.from_numpy(micro_batch.targets).to(model.device)
    return rows_at(_hidden_states(model, micro_batch, model.device), sources_N), targets_N
