"""What leaves the learner: weights by name for the engines, and which ones they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from grpo.errors import LearnerError
from grpo.model.content_hash import content_hash
from grpo.model.ranks import Ranks, whole


def named_weights(
    trained: Mapping[str, nn.Parameter], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """The trained tensors in `dtype`; sharded ones are gathered one at a time (collective)."""
    for name, parameter in trained.items():
        yield name, whole(parameter).detach().to(dtype)


def agreed_hash(
    trained: Mapping[str, nn.Parameter], dtype: torch.dtype, ranks: Ranks, step: int
) -> str:
    """The content hash of `named_weights`. Raises LearnerError where ranks hold different ones."""
    found = ranks.gather([content_hash(named_weights(trained, dtype))])
    if len(set(found)) > 1:
        raise LearnerError(f"after step {step} the learner ranks hold different weights: {found}")
    return found[0]
