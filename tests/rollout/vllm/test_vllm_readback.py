"""Which sets of weights are refused before vLLM is given them; without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grpo.errors import WeightsError
from grpo.rollout.vllm.readback import check_complete


class Padded(nn.Module):
    """A head as vLLM has it: rows and bias for a multiple of 64 tokens."""

    num_embeddings_per_partition = 64

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 4))
        self.bias = nn.Parameter(torch.zeros(64))


@pytest.fixture
def model() -> Any:
    found: Any = nn.Module()
    found.norm, found.lm_head = nn.LayerNorm(4), Padded()
    found.config = SimpleNamespace(tie_word_embeddings=False)
    return found


def sent(**other: Tensor) -> dict[str, Tensor]:
    named = {"norm.weight": 4, "norm.bias": 4, "lm_head.bias": 50}
    vectors = {name: torch.zeros(size) for name, size in named.items()}
    changed = {name.replace("__", "."): tensor for name, tensor in other.items()}
    return {**vectors, "lm_head.weight": torch.zeros(50, 4), **changed}


def test_a_head_shorter_than_the_padded_one_is_taken(model: Any) -> None:
    check_complete(model, sent())


def test_a_vector_of_another_length_is_refused(model: Any) -> None:
    with pytest.raises(WeightsError, match=r"'norm\.weight' has shape \(3,\), .* \(4,\)"):
        check_complete(model, sent(norm__weight=torch.zeros(3)))
