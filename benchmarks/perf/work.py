"""What the contenders are given to do: the same tokens for all, made from seeds by numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FIRST_ID = 3  # ids below are special in the models used here


def prompts(count: int, length: int, vocab: int, seed: int = 0) -> list[list[int]]:
    """`count` prompts of `length` random tokens."""
    rng = np.random.default_rng((1, seed))
    return rng.integers(FIRST_ID, vocab, (count, length)).tolist()


def lengths(count: int, limit: int, kind: str, seed: int = 0) -> list[int]:
    """Completion lengths in tokens: all `limit`, or lognormal.

    Lognormal: median a fifth of the limit, sigma 1, cut at the limit. Padding to the longest then
    makes about three times the real tokens.
    """
    if kind == "fixed":
        return [limit] * count
    rng = np.random.default_rng((2, seed))
    drawn = np.exp(rng.normal(np.log(limit / 5), 1.0, count))
    return np.clip(drawn.astype(int), 1, limit).tolist()


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Recorded rollouts: P prompts, each with G completions and their rewards."""

    prompts: list[list[int]]
    completions: list[list[list[int]]]  # [P][G][T]
    rewards: list[list[float]]  # [P][G]

    @property
    def rows(self) -> int:
        """P * G."""
        return sum(map(len, self.completions))

    @property
    def completion_tokens(self) -> int:
        """Of all completions."""
        return sum(len(c) for group in self.completions for c in group)


def rollouts(
    *,
    groups: int,
    samples: int,
    prompt: int,
    completion: int,
    kind: str,
    dead: int,
    vocab: int,
    seed: int = 0,
) -> Rollouts:
    """`groups` x `samples` rollouts; in the first `dead` groups all rewards are equal."""
    rng = np.random.default_rng((3, seed))
    drawn = iter(lengths(groups * samples, completion, kind, seed))
    texts = [
        [rng.integers(FIRST_ID, vocab, next(drawn)).tolist() for _ in range(samples)]
        for _ in range(groups)
    ]
    return Rollouts(
        prompts=prompts(groups, prompt, vocab, seed),
        completions=texts,
        rewards=[_rewards(samples, index < dead) for index in range(groups)],
    )


def _rewards(samples: int, dead: bool) -> list[float]:
    return [1.0] * samples if dead else [float(i % 2) for i in range(samples)]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Llama-like model, for counting its floating-point operations."""

    body: int  # parameters of the layers
    head: int  # parameters of the language-model head
    layers: int
    width: int  # query heads times head size


def shape_of(model: Any) -> Shape:
    """Of a Hugging Face model."""
    config = model.config
    head = config.vocab_size * config.hidden_size
    body = sum(p.numel() for p in model.parameters()) - head
    if not config.tie_word_embeddings:
        body -= head
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        body=body,
        head=head,
        layers=config.num_hidden_layers,
        width=config.num_attention_heads * size,
    )


def needed(recorded: Rollouts, shape: Shape) -> float:
    """Operations of forward and backward over what can move the policy."""
    live = [len(set(rewards)) > 1 for rewards in recorded.rewards]
    return flops(
        shape,
        prompt=[len(p) for p, used in zip(recorded.prompts, live, strict=True) if used],
        completion=[
            [len(c) for c in group]
            for group, used in zip(recorded.completions, live, strict=True)
            if used
        ],
        factor=6,
    )


def flops(
    shape: Shape, *, prompt: Sequence[int], completion: Sequence[Sequence[int]], factor: int
) -> float:
    """Operations that the work needs: `factor` (6 learning, 2 sampling) a parameter and token.

    `prompt`: its length in every group, counted once; `completion`: lengths in every group. The
    head is needed where a completion token is predicted. Attention: 2 * factor * width a layer for
    each pair of a token and one that it sees.
    """
    tokens = sum(prompt) + sum(map(sum, completion))
    predicted = sum(map(sum, completion))
    pairs = 0
    for P, group in zip(prompt, completion, strict=True):
        pairs += P * (P + 1) // 2
        pairs += sum(P * T + T * (T + 1) // 2 for T in group)
    attention = 2 * factor * shape.width * shape.layers * pairs
    return float(factor * (shape.body * tokens + shape.head * predicted) + attention)
