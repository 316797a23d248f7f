"""Log-probs of a micro-batch under a policy: the only forward pass the learner makes.

Only the positions that predict a trained token reach the language-model head, and their logits
exist a chunk at a time: at 49,152 entries a row, logits would otherwise outweigh everything else.
Log-probs are those of the distribution that was sampled, in float32: logits / temperature, with the
same top-k, top-p and min-p as the sampler's where those are on.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from grpo.batch import PAD, PROMPT, MicroBatch
from grpo.errors import RecipeError
from grpo.rollout.sampling import filtered_probs, make_plan
from grpo.types import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_ELEMENTS = 2**24  # logits of one chunk: 64 MiB in float32


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether completions of one prompt may be packed into a row behind a block mask.

    Needs an attention that takes any mask, in every layer, and rotary or learned positions that
    can be restarted. Sliding windows, chunked or linear attention and state-space layers see a
    row as one sequence, so such models read one completion per row.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if len(kinds) == 1 else None
    return (
        config._attn_implementation in ("sdpa", "eager")
        and kinds == {"full_attention"}
        and (window is None or not getattr(config, "use_sliding_window", True))
        and not getattr(model, "_is_stateful", False)
        and "position_ids" in inspect.signature(model.base_model.forward).parameters
    )


def disable_dropout(model: PreTrainedModel) -> None:
    """Set every dropout to 0: with dropout the learner scores a policy that never sampled."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # pyright: ignore[reportArgumentType]


def block_mask(segments_R_L: Tensor) -> Tensor:
    """bool [R, 1, L, L]: a query sees the prompt and its own segment, causally.

    Padding forms a segment of its own, so that no query is left with nothing to attend to.
    """
    query, key = segments_R_L[:, :, None], segments_R_L[:, None, :]
    L = segments_R_L.shape[1]
    causal = torch.ones(L, L, dtype=torch.bool, device=segments_R_L.device).tril()
    return ((key == query) | ((key == PROMPT) & (query != PAD)))[:, None] & causal


def _hidden_states(model: PreTrainedModel, micro_batch: MicroBatch, device: torch.device) -> Tensor:
    """[R * L, D] outputs of the last layer, after its norm."""
    ids = torch.from_numpy(micro_batch.ids).to(device)
    if not micro_batch.shared:
        # Right-padded and causal: no real token can see the padding, so no mask is needed.
        hidden = model.base_model(input_ids=ids, use_cache=False)[0]
    else:
        mask = block_mask(torch.from_numpy(micro_batch.segments).to(device))
        if model.config._attn_implementation == "eager":
            dtype = model.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(
                ~mask, torch.finfo(dtype).min
            )
        positions = torch.from_numpy(micro_batch.positions).to(device)
        hidden = model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        )[0]
    return hidden.flatten(0, 1)


def _head(model: PreTrainedModel) -> nn.Linear:
    return cast(nn.Linear, model.get_output_embeddings())


def _logits(model: PreTrainedModel, hidden_N_D: Tensor) -> Tensor:
    """The head, and what some models do after it (`check_head` refuses any other).

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma 2 caps softly.
    """
    logits = _head(model)(hidden_N_D)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    config = model.config
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise RecipeError unless `_logits` reproduces the model's own logits on two tokens."""
    ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    ours = _logits(model, model.base_model(input_ids=ids, use_cache=False)[0][0]).float()
    if not torch.allclose(own, ours, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        raise RecipeError(
            f"model.path: {type(model).__name__} transforms its logits after the output embedding "
            "in a way the learner does not know, so its log-probs would be wrong."
        )


class _TokenLogProbs(torch.autograd.Function):
    """Log-probs and entropies of logits [N, V] in as few passes over them as can be.

    On a CPU the vocabulary-wide elementwise passes cost more than the head's matrix product:
    softmax, entropy and gradient all come from one saved copy of the probabilities.
    """

    @staticmethod
    def forward(ctx: Any, logits_N_V: Tensor, targets_N_1: Tensor) -> tuple[Tensor, Tensor]:
        logp_N_V = torch.log_softmax(logits_N_V, dim=-1)
        logp_N = logp_N_V.gather(-1, targets_N_1)[:, 0]
        probs_N_V = logp_N_V.exp()
        with torch.autocast(logits_N_V.device.type, enabled=False):  # it would round to bfloat16
            entropy_N = -torch.linalg.vecdot(probs_N_V, logp_N_V)
        if not torch.isfinite(entropy_N).all():  # 0 * -inf, where part of the vocabulary is masked
            entropy_N = torch.special.entr(probs_N_V).sum(-1)
        ctx.save_for_backward(probs_N_V, targets_N_1, entropy_N)
        ctx.set_materialize_grads(False)  # None where the loss does not use an output
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        probs_N_V, targets_N_1, entropy_N = ctx.saved_tensors
        logp_gradient_N, entropy_gradient_N = gradients
        found = None
        if entropy_gradient_N is not None:  # d entropy / d logits = -probs * (log probs + entropy)
            found = torch.special.entr(probs_N_V).addcmul_(probs_N_V, entropy_N[:, None], value=-1)
            found.mul_(entropy_gradient_N[:, None])
        if logp_gradient_N is not None:
            # d logp / d logits = onehot - probs; in place, as nothing else reads the probabilities
            gradient_N_1 = logp_gradient_N[:, None]
            probs_N_V.mul_(-gradient_N_1).scatter_add_(-1, targets_N_1, gradient_N_1)
            found = probs_N_V if found is None else found.add_(probs_N_V)
        return found, None


@torch.no_grad()
def _left_out(logits_N_V: Tensor, targets_N_1: Tensor, sampling: Sampling) -> Tensor:
    """bool [N, V]: what top-k, top-p and min-p leave out of logits that are divided already.

    Never the token that was drawn: on the threshold, sampler and learner may round apart.
    """
    rows, vocab = logits_N_V.shape
    plan = make_plan([sampling] * rows, vocab, logits_N_V.device)
    left_out_N_V = filtered_probs(torch.softmax(logits_N_V, dim=-1), plan) == 0
    return left_out_N_V.scatter_(1, targets_N_1, False)


def _sampled_logits(
    model: PreTrainedModel,
    temperature: float,
    truncation: Sampling | None,
    hidden_N_D: Tensor,
    targets_N_1: Tensor,
) -> Tensor:
    """Logits [N, V] of the distribution that was sampled; -inf where it has nothing."""
    logits_N_V = _logits(model, hidden_N_D)
    if temperature != 1.0:
        logits_N_V = logits_N_V / temperature
    if truncation is not None:
        left_out_N_V = _left_out(logits_N_V, targets_N_1, truncation)
        logits_N_V = logits_N_V.masked_fill(left_out_N_V, -torch.inf)
    return logits_N_V


def _chunk_logprobs(
    model: PreTrainedModel,
    temperature: float,
    truncation: Sampling | None,
    hidden_N_D: Tensor,
    targets_N: Tensor,
) -> tuple[Tensor, Tensor]:
    targets_N_1 = targets_N.unsqueeze(-1)
    logits_N_V = _sampled_logits(model, temperature, truncation, hidden_N_D, targets_N_1)
    return cast(tuple[Tensor, Tensor], _TokenLogProbs.apply(logits_N_V, targets_N_1))


def _chunk_surprise(
    model: PreTrainedModel,
    temperature: float,
    truncation: Sampling | None,
    hidden_N_D: Tensor,
    targets_N: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob of the target, and mean and variance of -log p under the distribution, each [N]."""
    targets_N_1 = targets_N.unsqueeze(-1)
    logits_N_V = _sampled_logits(model, temperature, truncation, hidden_N_D, targets_N_1)
    logp_N_V = torch.log_softmax(logits_N_V, dim=-1)
    probs_N_V = logp_N_V.exp()
    finite_N_V = logp_N_V.masked_fill(probs_N_V == 0, 0.0)  # 0 * -inf counts as 0
    entropy_N = -(probs_N_V * finite_N_V).sum(-1)
    variance_N = (probs_N_V * (finite_N_V + entropy_N[:, None]).square()).sum(-1)
    return logp_N_V.gather(-1, targets_N_1)[:, 0], entropy_N, variance_N


def completion_logprobs(
    model: PreTrainedModel,
    micro_batch: MicroBatch,
    temperature: float,
    want_entropy: bool,
    truncation: Sampling | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs [N] of the trained tokens and entropies [N] in nats, both with gradient.

    float32, or float64 for a float64 model. Temperature 0 (greedy) counts as 1. `truncation`:
    the filters that the tokens were drawn with. When the logits need several chunks, each is
    recomputed in the backward pass instead of being kept.
    """
    inputs = _head_inputs(model, micro_batch)
    run = partial(_chunk_logprobs, model, temperature or 1.0, truncation)
    if torch.is_grad_enabled() and len(inputs) > 1:
        run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    logps, entropies = zip(*(run(h, t) for h, t in inputs), strict=True)
    return torch.cat(logps), torch.cat(entropies) if want_entropy else None


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
    run = partial(_chunk_surprise, model, temperature or 1.0, truncation)
    chunks = [run(h, t) for h, t in _head_inputs(model, micro_batch)]
    logps, means, variances = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return logps, means, variances


def _head_inputs(model: PreTrainedModel, micro_batch: MicroBatch) -> list[tuple[Tensor, Tensor]]:
    """(hidden states, targets) of the trained tokens, in chunks that the head can afford."""
    hidden_N_D = _hidden_states(model, micro_batch, model.device)[
        torch.from_numpy(micro_batch.sources).to(model.device)
    ]
    targets_N = torch.from_numpy(micro_batch.targets).to(model.device)
    step = max(1, CHUNK_ELEMENTS // _head(model).weight.shape[0])
    return list(zip(hidden_N_D.split(step), targets_N.split(step), strict=True))
