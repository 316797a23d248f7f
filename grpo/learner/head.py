"""From hidden states to log-probs of tokens: the language-model head and what follows it.

With 49,152 entries a row, logits outweigh everything else in a step, in memory and, on a CPU, in
time: passes over them cost more than the matrix product that makes them. So

  logits exist a chunk at a time (`CHUNK_ELEMENTS`; on a card more, see `BYTES_TO_A_LOGIT`), in the
  type the product is computed in
  up to `KEPT_CHUNKS` chunks are one, whose logits are kept; of more, none are
  everything that follows runs on slices of a chunk that stay in the processor's cache, in float32
  the backward pass computes a chunk again, unless there is only one, and turns it into its
  gradient in place; the gradient of the head's weight adds up over chunks in the weight's own type

What is left out of the plain computation: nothing. The sums are the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from grpo.errors import RecipeError
from grpo.kernels.head import normalize, pull_back_
from grpo.kernels.layers import weight_gradient
from grpo.model.canary import canary_ids, vocabulary
from grpo.model.casts import autocast_off, compute_type, joined
from grpo.model.devices import piece
from grpo.model.families import body
from grpo.model.filters import filtered_probs, make_plan
from grpo.types import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_ELEMENTS = 2**25  # logits of one chunk: 64 MiB in bfloat16, 128 MiB in float32
KEPT_CHUNKS = 4  # up to so many are one, which is kept for the backward pass
# On a card a chunk has a logit for each so many bytes of its memory. Kept logits are then at most
# a sixteenth of the memory in float32 and half of that in bfloat16, and a chunk's two float32 work
# copies a 32nd. That is 3,800 rows of 152,000 words on 139 GiB and 400 on 15 GiB, where a chunk for
# a CPU has 220. The backward pass reads and writes the float32 gradient of the weight once a chunk,
# 8 bytes for 2 operations a row: n rows do n / 4 operations a byte, and a card that does 200 in the
# same time waits for its memory with 220 rows and for its arithmetic with 3,800.
BYTES_TO_A_LOGIT = 256
SLICE_ELEMENTS = 2**18  # for each thread; two float32 slices fill a level-2 cache of 2 MiB
LEFT_OUT = -1e30  # a logit with probability 0; finite, so that 0 times its log-prob is 0


# What models call the factors of their logits, and the bound of a soft cap.
TIMES = ("logit_scale", "lm_head_multiplier")  # Cohere; Falcon-H1
OVER = ("logits_scaling", "logits_mup_width_multiplier")  # Granite and MiniCPM; Inkling
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True, kw_only=True)
class Transform:
    """What becomes of the head's product x: cap * tanh(scale * x / cap) / temperature.

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma 2 caps softly
    (`check_head` refuses any model that does something else). Columns from `vocab` on are padding
    of the head and no tokens. Last, `truncation` leaves out what the sampler did.
    """

    scale: float
    cap: float | None
    temperature: float
    truncation: Sampling | None
    vocab: int | None = None

    @staticmethod
    def of(model: PreTrainedModel, temperature: float, truncation: Sampling | None) -> Transform:
        """That of a model's own logits at a temperature; 0 (greedy) counts as 1."""
        config = model.config

        def factor(name: str) -> float:
            return getattr(config, name, None) or 1.0

        over = math.prod(map(factor, OVER))
        if config.model_type == "hyperclovax":  # which multiplies by what Granite divides by
            over = 1 / over
        return Transform(
            scale=math.prod(map(factor, TIMES)) / over,
            cap=next((c for c in (getattr(config, name, None) for name in CAPS) if c), None),
            temperature=temperature or 1.0,
            truncation=truncation,
            vocab=getattr(config, "unpadded_vocab_size", None),
        )

    @property
    def plain(self) -> bool:
        """Whether it is a factor and nothing else."""
        return self.cap is None and self.truncation is None and self.vocab is None

    def apply_(self, logits_S_V: Tensor, targets_S_1: Tensor) -> Tensor | None:
        """In place; returns the derivative [S, V] by the head's product, None where constant."""
        slope_S_V = None
        if self.cap is None:
            if (factor := self.scale / self.temperature) != 1.0:
                logits_S_V.mul_(factor)
        else:
            logits_S_V.mul_(self.scale / self.cap).tanh_()
            slope_S_V = (1 - logits_S_V.square()).mul_(self.scale / self.temperature)
            logits_S_V.mul_(self.cap / self.temperature)
        if self.vocab is not None:
            logits_S_V[:, self.vocab :] = LEFT_OUT
        if self.truncation is not None:
            logits_S_V.masked_fill_(_left_out(logits_S_V, targets_S_1, self.truncation), LEFT_OUT)
        return slope_S_V


@torch.no_grad()
def _left_out(logits_S_V: Tensor, targets_S_1: Tensor, sampling: Sampling) -> Tensor:
    """bool [S, V]: what top-k, top-p and min-p leave out of logits that are divided already.

    Never the token that was drawn: on the threshold, sampler and learner may round apart.
    """
    rows, vocab = logits_S_V.shape
    plan = make_plan([sampling] * rows, vocab, logits_S_V.device)
    left_out_S_V = filtered_probs(torch.softmax(logits_S_V, dim=-1), plan) == 0
    return left_out_S_V.scatter_(1, targets_S_1, False)


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The language-model head. Raises RecipeError where it is no linear layer."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise RecipeError(
            f"model.path: the output embedding of {type(model).__name__} is a "
            f"{type(head).__name__}, not a linear layer, and the learner cannot split it up."
        )
    return head


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise RecipeError unless head and `Transform` give the model's own logits on some tokens."""
    ids = torch.tensor([canary_ids(vocabulary(model.config))], device=model.device)
    own = model(input_ids=ids, use_cache=False).logits[0].float()
    hidden = body(model)(input_ids=ids, use_cache=False)[0][0]
    head = output_head(model)
    off = math.inf
    if hidden.shape[-1] == head.in_features:
        ours = head(hidden).float()
        Transform.of(model, 1.0, None).apply_(ours, ids.T)
        off = float((ours[:, : own.shape[1]] - own).norm() / own.norm())
    exact = model.dtype in (torch.float32, torch.float64)
    if not off <= (1e-4 if exact else 1e-2):
        raise RecipeError(
            f"model.path: {type(model).__name__} transforms its hidden states or logits around the "
            f"output embedding in a way the learner does not know (off by {off:.1e}), so its "
            "log-probs would be wrong; choose another model (docs/models.md)"
        )


def token_logprobs(
    head: nn.Linear, hidden_N_D: Tensor, targets_N: Tensor, transform: Transform
) -> tuple[Tensor, Tensor]:
    """Log-probs [N] of the targets and entropies [N] in nats, with gradient.

    float32, or float64 for a float64 model; the product is computed in autocast's type.
    """
    found = _TokenLogProbs.apply(hidden_N_D, head.weight, head.bias, targets_N, transform)
    return cast(tuple[Tensor, Tensor], found)


@torch.no_grad()
def token_surprise(
    head: nn.Linear, hidden_N_D: Tensor, targets_N: Tensor, transform: Transform
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs [N] of the targets, and mean and variance [N] of -log p under the distribution."""
    compute = compute_type(head.weight)
    with autocast_off(hidden_N_D):
        hidden_N_D, weight = hidden_N_D.to(compute), joined([head.weight], compute)
        bias = None if head.bias is None else head.bias.to(compute)
        found: list[Tensor] = []
        for hidden, targets in _chunks(hidden_N_D, targets_N, len(weight)):
            product = functional.linear(hidden, weight, bias)
            if (whole := _at_once(product, targets, transform)) is not None:
                found.append(whole[1:])
                continue
            for logits, spare, targets_S_1, _ in _slices(product, targets, transform):
                _, logp, entropy = _normalize_(logits, spare, targets_S_1)
                probs = torch.exp(logits, out=spare)
                excess = logits.add_(entropy[:, None])
                # Not squared first: LEFT_OUT would overflow, and its share is 0.
                variance = probs.mul_(excess).mul_(excess).sum(-1)
                found.append(torch.stack([logp, entropy, variance]))
        logp_N, entropy_N, variance_N = torch.cat(found, dim=1)
    return logp_N, entropy_N, variance_N


def _chunk(rows: int, vocab: int, device: torch.device) -> int:
    """Rows of a chunk."""
    elements = piece(device, CHUNK_ELEMENTS, BYTES_TO_A_LOGIT)
    if rows * vocab <= KEPT_CHUNKS * elements:
        return max(1, rows)
    return max(1, elements // vocab)


def _chunks(hidden: Tensor, targets: Tensor, vocab: int) -> list[tuple[Tensor, Tensor]]:
    step = _chunk(len(hidden), vocab, hidden.device)
    return list(zip(hidden.split(step), targets.split(step), strict=True))


def _slices(
    product_n_V: Tensor, targets_n: Tensor, transform: Transform
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """(logits [S, V], room for as many, targets [S, 1], slope) of a chunk, in float32 or float64.

    The first two are the same memory every time, and may be overwritten.
    """
    rows, vocab = product_n_V.shape
    device = product_n_V.device
    elements = piece(device, SLICE_ELEMENTS * torch.get_num_threads(), BYTES_TO_A_LOGIT)
    size = min(rows, max(1, elements // vocab))
    dtype = torch.float64 if product_n_V.dtype == torch.float64 else torch.float32
    memory = torch.empty((2, size, vocab), dtype=dtype, device=device)
    for product, targets in zip(product_n_V.split(size), targets_n.split(size), strict=True):
        logits, spare = memory[:, : len(product)]
        logits.copy_(product)
        targets_S_1 = targets[:, None]
        yield logits, spare, targets_S_1, transform.apply_(logits, targets_S_1)


def _at_once(product_n_V: Tensor, targets_n: Tensor, transform: Transform) -> Tensor | None:
    """What `_slices` are for, by a compiled kernel: [4, n], None where it cannot."""
    if not transform.plain:
        return None
    return normalize(product_n_V, targets_n, transform.scale / transform.temperature)


def _normalize_(
    logits_S_V: Tensor, spare_S_V: Tensor, targets_S_1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits become log-probs in place; returns log of the sum of exp, log-prob, entropy [S]."""
    highest = logits_S_V.amax(-1, keepdim=True)
    torch.exp(logits_S_V.sub_(highest), out=spare_S_V)
    total = spare_S_V.sum(-1)
    log_total = total.log()
    entropy = log_total - torch.linalg.vecdot(spare_S_V, logits_S_V) / total
    logits_S_V.sub_(log_total[:, None])
    return highest[:, 0] + log_total, logits_S_V.gather(-1, targets_S_1)[:, 0], entropy


class _TokenLogProbs(torch.autograd.Function):
    """Hidden states [N, D], weight [V, D], bias [V] or None, targets [N] -> log-probs, entropies.

    With p the distribution, h its entropy, and upstream gradients a of the target's log-prob and b
    of the entropy, a logit's gradient is a (target - p) - b p (log p + h).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_N_D: Tensor,
        weight_V_D: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        transform: Transform,
    ) -> tuple[Tensor, Tensor]:
        compute = compute_type(weight_V_D)
        with autocast_off(hidden_N_D):
            hidden, weight = hidden_N_D.to(compute), joined([weight_V_D], compute)
            bias = None if bias_V is None else bias_V.to(compute)
            chunks = _chunks(hidden, targets_N, len(weight))
            found: list[Tensor] = []
            product = hidden.new_empty(0)
            for part, targets in chunks:
                product = functional.linear(part, weight, bias)
                if (whole := _at_once(product, targets, transform)) is not None:
                    found.append(whole[:3])
                    continue
                for logits, spare, targets_S_1, _ in _slices(product, targets, transform):
                    found.append(torch.stack(_normalize_(logits, spare, targets_S_1)))
            scale_N, logp_N, entropy_N = torch.cat(found, dim=1)
        kept = product if len(chunks) == 1 else None
        ctx.save_for_backward(hidden, weight, bias, targets_N, scale_N, entropy_N, kept)
        ctx.transform = transform
        ctx.types = hidden_N_D.dtype, weight_V_D.dtype
        ctx.set_materialize_grads(False)  # None where the loss does not use an output
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets_N, scale_N, entropy_N, kept = ctx.saved_tensors
        grad_logp, grad_entropy = (
            torch.zeros_like(scale_N) if gradient is None else gradient for gradient in gradients
        )
        uses_entropy = gradients[1] is not None
        hidden_type, weight_type = ctx.types
        per_row = torch.stack([scale_N, entropy_N, grad_logp, grad_entropy])
        grad_hidden: list[Tensor] = []
        grad_weight = grad_bias = None
        step = _chunk(len(hidden), len(weight), hidden.device)
        with autocast_off(hidden):
            for (part, targets), rows in zip(
                _chunks(hidden, targets_N, len(weight)), per_row.split(step, dim=1), strict=True
            ):
                product = functional.linear(part, weight, bias) if kept is None else kept
                _logit_gradients_(product, targets, rows, ctx.transform, uses_entropy)
                grad_hidden.append((product @ weight).to(hidden_type))
                if ctx.needs_input_grad[1]:
                    grad_weight = weight_gradient(product, part, weight_type, grad_weight)
                if ctx.needs_input_grad[2]:
                    grad_chunk = product.sum(0, dtype=weight_type)
                    grad_bias = grad_chunk if grad_bias is None else grad_bias + grad_chunk
        return torch.cat(grad_hidden), grad_weight, grad_bias, None, None


def _logit_gradients_(
    product_n_V: Tensor, targets_n: Tensor, rows_4_n: Tensor, transform: Transform, entropy: bool
) -> None:
    """The head's product becomes the gradient by it, slice by slice, in place."""
    factor = transform.scale / transform.temperature
    if transform.plain and pull_back_(product_n_V, targets_n, rows_4_n, factor) is not None:
        return
    start = 0
    for logits, probs, targets_S_1, slope in _slices(product_n_V, targets_n, transform):
        stop = start + len(logits)
        scale, h, a, b = (row[:, None] for row in rows_4_n[:, start:stop])
        torch.exp(logits.sub_(scale), out=probs)
        if entropy:
            probs.mul_(logits.add_(h).mul_(-b).sub_(a))
        else:
            probs.mul_(-a)
        probs.scatter_add_(-1, targets_S_1, a)
        if slope is not None:
            probs.mul_(slope)
        elif factor != 1.0:
            probs.mul_(factor)
        product_n_V[start:stop].copy_(probs)
        start = stop
