"""Drawing tokens on the card: the distribution, the filters, and the same tokens as on the host.

First suspicion: chi-square fails, `inverse_cdf` or the uniform numbers on their way to the card;
filters fail, `topk` or `sort` there, or a threshold rounded apart; the edges, float32 block sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from grpo.model.filters import filtered_probs, make_plan
from grpo.rollout.embedded.sampling import inverse_cdf, noise_key, sample, uniforms
from grpo.types import Sampling
from tests.gpu.learners import distance

CPU = torch.device("cpu")
# of Qwen2.5 and Qwen3; a rehearsal has no time for as many
MANY = 151_936 if torch.cuda.is_available() else 8_000
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.5},
    "top-k": {"top_k": 7, "temperature": 1.5},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.05, "temperature": 1.3},
    "all": {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 1.2},
}


def logits_of(rows: int, words: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, words, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [12, 1500])
def test_tokens_follow_the_distribution(device: torch.device, kind: str, words: int) -> None:
    """Chi-square of 20,000 tokens over bins that expect 20 or more, at p = 1e-4.

    Its quantile by Wilson and Hilferty: df (1 - 2 / (9 df) + 3.72 sqrt(2 / (9 df)))^3.
    """
    draws, part = 20_000, 2000
    sampling = Sampling(**KINDS[kind])
    logits = logits_of(1, words)
    plan = make_plan([sampling], words, CPU)
    exact = filtered_probs(torch.softmax(logits.double() / sampling.temperature, -1), plan)[0]
    there = logits.to(device).expand(part, words).contiguous()
    plans = make_plan([sampling] * part, words, device)
    keys = np.full(draws, noise_key((7,), 0))
    noise = uniforms(keys, np.arange(draws))
    tokens, logps = [], []
    for first in range(0, draws, part):
        drawn, logp = sample(there, noise[first : first + part], plans)
        tokens.append(drawn.cpu())
        logps.append(logp.cpu())
    token, logp = torch.cat(tokens), torch.cat(logps)
    torch.testing.assert_close(logp.double(), exact.log()[token], atol=1e-5, rtol=1e-5)
    counts = torch.bincount(token, minlength=words).double()
    assert bool((counts[exact == 0] == 0).all())
    order = exact.argsort(descending=True)
    likely = order[exact[order] * draws >= 20]
    wanted, found = exact[likely] * draws, counts[likely]
    rest = draws - wanted.sum()
    if rest > 20:
        wanted = torch.cat([wanted, rest[None]])
        found = torch.cat([found, (draws - found.sum())[None]])
    df = len(wanted) - 1
    quantile = df * (1 - 2 / (9 * df) + 3.72 * (2 / (9 * df)) ** 0.5) ** 3
    assert ((found - wanted) ** 2 / wanted).sum() < quantile


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [40, MANY])
def test_the_same_tokens_as_on_the_host(device: torch.device, kind: str, words: int) -> None:
    """But where the uniform number is within 1e-5 of an edge between words, in float64."""
    rows = 256 if words < 1000 else 12
    sampling = Sampling(**KINDS[kind])
    logits = logits_of(rows, words, 1)
    noise = np.random.default_rng(0).random(rows)
    theirs = sample(logits, noise, make_plan([sampling] * rows, words, CPU))
    plan = make_plan([sampling] * rows, words, device)
    ours = sample(logits.to(device), noise, plan)
    probs = torch.softmax(logits.double() / sampling.temperature, -1)
    exact = filtered_probs(probs, make_plan([sampling] * rows, words, CPU))
    edge = (exact.cumsum(1) - torch.from_numpy(noise)[:, None]).abs().amin(1) < 1e-5
    same = ours[0].cpu() == theirs[0]
    assert bool((same | edge).all())
    assert same.float().mean() > 0.8
    torch.testing.assert_close(ours[1].cpu()[same], theirs[1][same], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_filters_in_one_batch_are_those_of_each_row(
    device: torch.device, dtype: torch.dtype
) -> None:
    """Rows of any kind side by side keep the words that they keep alone, on the host."""
    words = 5000
    samplings = [Sampling(**each) for each in KINDS.values()] + [Sampling(temperature=0)]
    logits = logits_of(len(samplings), words, 2).to(dtype)
    plan = make_plan(samplings, words, device)
    probs = torch.softmax(logits.to(device).float() / plan.temperature, -1)
    found = filtered_probs(probs, plan).cpu()
    for row, one in enumerate(samplings):
        alone = make_plan([one], words, CPU)
        wanted = torch.softmax(logits[row : row + 1].float() / (one.temperature or 1.0), -1)
        wanted = filtered_probs(wanted, alone)[0]
        # a word within float32's rounding of a threshold may be on either side of it
        assert int(((found[row] > 0) != (wanted > 0)).sum()) <= 1
        assert distance(found[row], wanted.double()) < 1e-3
    greedy = int(sample(logits.to(device), np.full(len(samplings), 0.5), plan)[0][-1])
    assert float(logits[-1, greedy]) == float(logits[-1].max())


@pytest.mark.parametrize("words", [5, 256, 1000, MANY])
def test_no_word_without_probability_is_drawn(device: torch.device, words: int) -> None:
    """At both ends of the uniform numbers, and between them."""
    probs = torch.rand(64, words, generator=torch.Generator().manual_seed(0)) ** 8
    probs[:, ::3] = 0
    probs[:, -1] = 0
    probs /= probs.sum(1, keepdim=True)
    there = probs.to(device)
    for edge in (0.0, 0.5, 1 - 2.0**-53):
        uniform = torch.full((64,), edge, dtype=torch.float64, device=device)
        at = inverse_cdf(there, uniform).cpu()
        assert bool((at < words).all())
        assert bool((probs.gather(1, at[:, None]) > 0).all())
