"""Log-probs of a micro-batch under a policy: the only forward pass the learner makes.

Only the positions that predict a trained token reach the language-model head (`grpo/head.py`).
Log-probs are those of the distribution that was sampled, in float32: logits / temperature, with the
same top-k, top-p and min-p as the sampler's where those are on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from grpo.batch import MicroBatch, Pack
from grpo.canary import canary_ids, vocabulary
from grpo.families import body, check_causal, check_family, may_share_prompts
from grpo.head import Transform, check_head, output_head, token_logprobs, token_surprise
from grpo.repeated import rows_at
from grpo.shared_attention import IMPLEMENTATION, Layout, make_layout
from grpo.transfer import to_device
from grpo.types import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = re.compile(r"(dropout|_drop|layerdrop)$")  # numbers in a module, of training mode


def check_model(model: PreTrainedModel) -> None:
    """Raise RecipeError where the learner's log-probs would not be those of the model."""
    check_family(model.config)
    check_causal(model)
    check_head(model)


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether completions of one prompt may lie in a flat row behind it, and come out right."""
    return (
        model.config._attn_implementation in ("sdpa", IMPLEMENTATION)
        and may_share_prompts(model)
        and _layout_arrives(model)
    )


@torch.no_grad()
def _layout_arrives(model: PreTrainedModel) -> bool:
    """Whether two completions after one prompt come out as they do by themselves.

    The layout travels to the attention as a keyword, which a model is free to drop.
    """
    ids = torch.tensor([canary_ids(vocabulary(model.config))[:11]], device=model.device)
    prompt, first, second = ids.split([4, 3, 4], 1)
    packs = (Pack(start=0, prompt=4, completions=((4, 3), (7, 4))),)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]], device=model.device)
    implementation = model.config._attn_implementation
    try:
        layout = make_layout(packs, ids.device)
        shared = _flat_hidden_states(model, ids, positions, layout)[0].float()
    except (TypeError, ValueError, NotImplementedError):  # a keyword or an option refused
        model.config._attn_implementation = implementation
        return False
    plain = [
        body(model)(input_ids=torch.cat([prompt, own], 1), use_cache=False)[0][0].float()
        for own in (first, second)
    ]
    expected = torch.cat([plain[0], plain[1][4:]])
    exact = model.dtype in (torch.float32, torch.float64)
    off = float((shared - expected).norm() / expected.norm())
    if off <= (1e-4 if exact else 5e-2):
        return True
    model.config._attn_implementation = implementation
    return False


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout to 0: with dropout the learner scores a policy that never sampled.

    Also where it is a number in a module of the model's own, and whole layers that are dropped:
    gradient checkpointing runs layers in training mode.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and NOISE.search(name):
                setattr(module, name, 0.0)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A micro-batch where the model is, for all passes over it: shapes as there."""

    batch: MicroBatch
    ids: Tensor
    positions: Tensor
    sources: Tensor
    targets: Tensor
    logprobs: Tensor
    advantages: Tensor
    weights: Tensor
    completions: Tensor
    layout: Layout | None  # of a flat row


def place(micro_batch: MicroBatch, device: torch.device) -> Placed:
    """The micro-batch on `device`: one copy, and one more where an attention reads the layout."""
    names = ("ids", "positions", "sources", "targets")
    names += ("logprobs", "advantages", "weights", "completions")
    return Placed(
        batch=micro_batch,
        layout=make_layout(micro_batch.packs, device) if micro_batch.packs else None,
        **to_device(device, **{name: getattr(micro_batch, name) for name in names}),
    )


def _hidden_states(model: PreTrainedModel, placed: Placed) -> Tensor:
    """[R * L, D] outputs of the last layer, after its norm."""
    if placed.layout is not None:
        hidden = _flat_hidden_states(model, placed.ids, placed.positions, placed.layout)
    else:
        # Right-padded and causal: no real token can see the padding, so no mask is needed.
        hidden = body(model)(input_ids=placed.ids, use_cache=False)[0]
    return hidden.flatten(0, 1)


def _flat_hidden_states(
    model: PreTrainedModel, ids: Tensor, positions: Tensor, layout: Layout
) -> Tensor:
    """[1, L, D]; see `grpo/shared_attention.py`, which is transformers' own without a layout.

    So the model keeps it: with gradient checkpointing it is called again in the backward pass.
    """
    model.config._attn_implementation = IMPLEMENTATION
    # A mask that hides nothing: made by the model, it would be one of all pairs of tokens.
    return body(model)(
        input_ids=ids,
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=ids.device),
        position_ids=positions,
        use_cache=False,
        shared_layout=layout,
    )[0]


def completion_logprobs(
    model: PreTrainedModel,
    placed: Placed,
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
        *_trained_positions(model, placed),
        Transform.of(model, temperature, truncation),
    )
    return logp_N, entropy_N if want_entropy else None


@torch.no_grad()
def completion_surprise(
    model: PreTrainedModel,
    placed: Placed,
    temperature: float,
    truncation: Sampling | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [N] of the trained tokens, and what -log p should be: its mean and variance [N].

    The mean is the entropy of the next-token distribution. Over tokens that were drawn from it,
    sum(-log p - mean) / sqrt(sum(variance)) is a standard normal number for a sampler that draws
    what it says (`grpo/agreement.py`).
    """
    return token_surprise(
        output_head(model),
        *_trained_positions(model, placed),
        Transform.of(model, temperature, truncation),
    )


def _trained_positions(model: PreTrainedModel, placed: Placed) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] that predict the trained tokens, and those tokens [N]."""
    return rows_at(_hidden_states(model, placed), placed.sources), placed.targets
