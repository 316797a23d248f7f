"""A canary: one number that tells two sets of resident weights apart.

Engine and learner compute it from the same fixed tokens; if the engine's number is not the
learner's, the weights that sample are not the weights that learn.
"""

from __future__ import annotations

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


def canary_logits(model: nn.Module) -> Tensor:
    """Logits [CANARY_LENGTH, V] of the canary tokens, float32.

    The forward pass runs in the model's own dtype: nothing is copied or cast. Dropout is off while
    it runs.
    """
    import torch

    parameter = next(model.parameters())
    ids = torch.tensor([canary_ids(vocabulary(model.config))], device=parameter.device)
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            return model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        if training:  # both walk through all modules, which takes as long as a tiny model's layers
            model.train()


def canary_logprob(model: nn.Module) -> float:
    """Sum of log p(token | earlier tokens) over the canary tokens, natural log.

    The log-softmax is in float32. Compare with a tolerance: about 1e-3 between float32 models, 0.5
    between bfloat16 ones.
    """
    import torch

    logits = canary_logits(model)[:-1]
    ids = torch.tensor(canary_ids(vocabulary(model.config)), device=logits.device)
    logp = torch.log_softmax(logits, dim=-1).gather(1, ids[1:, None])
    return float(logp.double().sum())
