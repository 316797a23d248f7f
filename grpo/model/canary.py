"""A canary: one number that tells two sets of resident weights apart.

Engine and learner compute it from the same fixed tokens. If the two numbers differ, the weights
that sample are not the weights that learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

CANARY_LENGTH = 16


def canary_ids(vocab_size: int) -> list[int]:
    """`CANARY_LENGTH` token ids in [0, vocab_size), the same on every machine."""
    # Knuth's multiplicative hash: spread over the vocabulary, no generator state involved.
    return [(2654435761 * (i + 1) >> 7) % vocab_size for i in range(CANARY_LENGTH)]


def vocabulary(config: Any) -> int:
    """Tokens that a model of `config` can write: its logits may be fewer than its embeddings."""
    return int(getattr(config, "unpadded_vocab_size", None) or config.vocab_size)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it `model` computes without gradients and without dropout."""
    import torch

    training = model.training
    if training:  # eval and train visit every module, which takes as long as a tiny model's layers
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()


def logits_of(model: nn.Module, ids: list[int], **options: Any) -> Tensor:
    """Logits [L, V], float32, of one sequence of L token ids.

    The forward pass runs in the model's own dtype: nothing is copied or cast.
    """
    import torch

    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    return model(input_ids=tokens, use_cache=False, **options).logits[0].float()


def canary_logits(model: nn.Module) -> Tensor:
    """Logits [CANARY_LENGTH, V] of the canary tokens, float32, without dropout."""
    with evaluating(model):
        return logits_of(model, canary_ids(vocabulary(model.config)))


def canary_logprob(model: nn.Module) -> float:
    """Sum of log p(token | earlier tokens) over the canary tokens, natural log.

    The log-softmax is in float32. Compare with a tolerance: about 1e-3 for float32 models, 0.5 for
    bfloat16 ones.
    """
    import torch

    logits = canary_logits(model)[:-1]
    ids = torch.tensor(canary_ids(vocabulary(model.config)), device=logits.device)
    logp = torch.log_softmax(logits, dim=-1).gather(1, ids[1:, None])
    return float(logp.double().sum())
