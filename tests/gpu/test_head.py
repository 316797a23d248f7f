"""The language-model head in chunks, with 152k words, against float64 on the host.

First suspicion: log-probs fail, `head._normalize_` or a soft cap on this card; gradients of the
weight alone, what adds up over chunks; the memory alone, a chunk that something keeps alive.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grpo.learner import head
from grpo.learner.head import Transform, token_logprobs, token_surprise
from grpo.model.filters import filtered_probs, make_plan
from grpo.types import Sampling
from tests.gpu.learners import distance
from tests.gpu.memory import Peak

# of Qwen2.5 and Qwen3; a rehearsal has no time for as many
WORDS = 151_936 if torch.cuda.is_available() else 8_000
PLAIN = {"scale": 1.0, "cap": None, "temperature": 1.0, "truncation": None}
TRANSFORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "scale and cap": {"scale": 0.5, "cap": 3.0, "temperature": 1.3},
    "padding": {"vocab": WORDS - 300},
    "top-k": {"truncation": Sampling(top_k=50), "temperature": 0.8},
    "top-p and min-p": {"truncation": Sampling(top_p=0.9, min_p=1e-3)},
}


def given(rows: int, words: int, width: int = 32) -> tuple[nn.Linear, Tensor, Tensor]:
    """Head with bias, hidden states [N, D] and targets [N], float32 on the host.

    Logits of a spread of about 3: some words are likely, most are not. One of a row's six likeliest
    words is its target, so that no filter leaves it out.
    """
    torch.manual_seed(0)
    layer = nn.Linear(width, words)
    nn.init.normal_(layer.weight, std=0.5)
    hidden = torch.randn(rows, width)
    with torch.no_grad():
        logits = layer(hidden)
        likely = logits[:, : words - 300].topk(6).indices
    return layer, hidden, likely[torch.arange(rows), torch.arange(rows) % 6]


def exactly(
    layer: nn.Linear, hidden: Tensor, targets: Tensor, transform: Transform, upstream: Tensor
) -> list[Tensor]:
    """Log-probs, entropies and gradients in float64, by autograd over all logits at once."""
    layer, hidden = copy.deepcopy(layer).double(), hidden.double().requires_grad_()
    logits = layer(hidden) * transform.scale
    if transform.cap is not None:
        logits = transform.cap * torch.tanh(logits / transform.cap)
    logits = logits / transform.temperature
    if transform.vocab is not None:
        logits = logits[:, : transform.vocab]
    if transform.truncation is not None:
        plan = make_plan([transform.truncation] * len(logits), logits.shape[1], logits.device)
        kept = filtered_probs(torch.softmax(logits.detach(), -1), plan) > 0
        kept[torch.arange(len(logits)), targets] = True
        logits = logits.masked_fill(~kept, -1e30)
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    drawn = logp.gather(1, targets[:, None])[:, 0]
    (drawn * upstream[0] + entropy * upstream[1]).sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert hidden.grad is not None
    found = [drawn.detach(), entropy.detach()]
    return [*found, hidden.grad, layer.weight.grad, layer.bias.grad]


def ours(
    layer: nn.Linear, hidden: Tensor, targets: Tensor, transform: Transform, upstream: Tensor
) -> list[Tensor]:
    hidden = hidden.clone().requires_grad_()
    logp, entropy = token_logprobs(layer, hidden, targets, transform)
    (logp * upstream[0] + entropy * upstream[1]).sum().backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    assert hidden.grad is not None
    return [logp.detach(), entropy.detach(), hidden.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("chunks", [1, 3])
def test_float32(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, name: str, chunks: int
) -> None:
    """1e-5: sums of 152k float32 terms in a tree, 6e-8 each; see `learners.FLOAT32`."""
    rows = 24
    if chunks > 1:
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", WORDS * rows // chunks // 4)
        monkeypatch.setattr(head, "KEPT_CHUNKS", 1)
    layer, hidden, targets = given(rows, WORDS)
    transform = Transform(**{**PLAIN, **TRANSFORMS[name]})
    upstream = torch.randn(2, rows)
    exact = exactly(layer, hidden, targets, transform, upstream.double())
    there = copy.deepcopy(layer).to(device)
    found = ours(there, hidden.to(device), targets.to(device), transform, upstream.to(device))
    for what, mine, right in zip(
        ("log-prob", "entropy", "hidden", "weight", "bias"), found, exact, strict=True
    ):
        assert distance(mine, right) < 1e-5, what
    surprise = token_surprise(there, hidden.to(device), targets.to(device), transform)
    for mine, right in zip(surprise, exact[:2], strict=False):
        assert distance(mine, right) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_as_exact_as_cross_entropy(device: torch.device, dtype: torch.dtype) -> None:
    """Of a product rounded to the half type and a loss in float32, as torch would do it."""
    rows = 64
    layer, hidden, targets = given(rows, WORDS)
    upstream = torch.stack([torch.randn(rows), torch.zeros(rows)])
    transform = Transform(**PLAIN)
    exact = exactly(layer, hidden, targets, transform, upstream.double())
    mine, theirs = copy.deepcopy(layer).to(device), copy.deepcopy(layer).to(device)
    there = targets.to(device)
    with torch.autocast(device.type, dtype=dtype):
        found = ours(mine, hidden.to(device), there, transform, upstream.to(device))
        leaf = hidden.to(device).requires_grad_()
        losses = nn.functional.cross_entropy(theirs(leaf).float(), there, reduction="none")
    (-losses * upstream[0].to(device)).sum().backward()
    plain = [-losses.detach(), leaf.grad, theirs.weight.grad]
    for what, own, torchs, right in zip(
        ("log-prob", "hidden", "weight"),
        (found[0], found[2], found[3]),
        plain,
        (exact[0], exact[2], exact[3]),
        strict=True,
    ):
        assert torchs is not None
        assert distance(own, right) < 1.5 * distance(torchs, right) + 1e-6, what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_does_not_grow_with_the_number_of_tokens(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """A chunk's logits, two slices in float32 and what they become; never those of all tokens.

    16,384 tokens of 152k words are 9.3 GiB of float32 logits. Allowed: the product of a chunk and
    four float32 tensors of its size, the weight in the compute type, and its gradient twice.
    """
    rows, width = 16_384, 64
    if device.type == "cpu":
        rows = 256
        monkeypatch.setattr(head, "CHUNK_ELEMENTS", 2**21)
    with device:
        layer = nn.Linear(width, WORDS, bias=False)
        hidden = torch.randn(rows, width, requires_grad=True)
        targets = torch.randint(WORDS, (rows,))
    with Peak(device) as peak, torch.autocast(device.type, dtype, dtype != torch.float32):
        logp, entropy = token_logprobs(layer, hidden, targets, Transform(**PLAIN))
        (logp + 0.1 * entropy).sum().backward()
    allowed = 5 * 4 * head.CHUNK_ELEMENTS + 3 * layer.weight.nbytes + 8 * hidden.nbytes
    assert peak.bytes < allowed, f"{peak.bytes / 2**20:.0f} MiB, allowed {allowed / 2**20:.0f} MiB"
