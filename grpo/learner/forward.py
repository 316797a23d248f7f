"""A micro-batch through the policy: the only forward pass the learner makes.

Only the positions that predict a trained token reach the language-model head
(`grpo/learner/head.py`). Log-probs are those of the distribution that was sampled, in float32:
logits / temperature, with the same top-k, top-p and min-p as the sampler's where those are on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from grpo.attention.interface import IMPLEMENTATION
from grpo.attention.layout import Layout, Pack, make_layout
from grpo.learner.head import Transform, check_head, output_head, token_logprobs, token_surprise
from grpo.learner.packing import Placed
from grpo.method.repeated import rows_at
from grpo.model.canary import canary_ids, canary_logits, canary_logprob, vocabulary
from grpo.model.families import body, check_causal, check_family, may_share_prompts
from grpo.types import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = re.compile(r"(dropout|_drop|layerdrop)$")  # numbers in a module, of training mode


Want = Literal["variance"]


class TokenScores(NamedTuple):
    """Of the N trained tokens of a micro-batch; in float32, or float64 for a float64 model.

    A tuple, because FSDP2 finds what a backward pass will begin with in tuples and not in records.
    """

    logp: Tensor  # under the policy, at the temperature and truncation that were asked for
    entropy: Tensor  # of the next-token distribution, in nats
    variance: Tensor | None = None  # of -log p under that distribution; without gradient


class Policy(nn.Module):
    """The model as the learner uses it: micro-batches in, scores of their trained tokens out.

    Wrappers for several ranks see `forward` alone, and of the others what `PASSES` names.
    """

    PASSES = ("canary_logits", "canary_logprob")

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        placed: Placed,
        temperature: float,
        truncation: Sampling | None = None,
        want: Sequence[Want] = (),
    ) -> TokenScores:
        """See `token_scores`."""
        return token_scores(self.model, placed, temperature, truncation, want)

    def canary_logits(self) -> Tensor:
        """Logits of the canary tokens, by the model's own forward pass."""
        return canary_logits(self.model)

    def canary_logprob(self) -> float:
        """Their summed log-prob."""
        return canary_logprob(self.model)


def token_scores(
    model: PreTrainedModel,
    placed: Placed,
    temperature: float,
    truncation: Sampling | None = None,
    want: Sequence[Want] = (),
) -> TokenScores:
    """Scores [N] of the trained tokens, with gradient unless `variance` is wanted.

    Temperature 0 (greedy) counts as 1. `truncation`: the filters that the tokens were drawn with.
    Over tokens drawn from the distribution, sum(-log p - entropy) / sqrt(sum(variance)) is a
    standard normal number for a sampler that draws what it says (`grpo/training/agreement.py`).
    """
    score = token_surprise if "variance" in want else token_logprobs
    transform = Transform.of(model, temperature, truncation)
    hidden_N_D = rows_at(_hidden_states(model, placed), placed.sources)
    return TokenScores(*score(output_head(model), hidden_N_D, placed.targets, transform))


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
    """[1, L, D]; see `grpo/attention/interface.py`, which is transformers' own without a layout.

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
