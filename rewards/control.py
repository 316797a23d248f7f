"""The random-reward control: a coin flip that no policy can learn from.

If a recipe "improves" under this reward, the improvement does not come from the reward (Spurious
Rewards, arXiv 2506.10947). The flip must be reproducible and yet not a function of the completion
alone: a fixed function of text would be an ordinary, learnable reward.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from grpo.errors import PluginError
from grpo.rewards.verifier import text_of
from grpo.types import Message


class Random:
    """A coin flip keyed by seed, step (or visit), prompt, tokens and place among equal completions.

    With `trainer_state` the key holds its global_step, so a resumed run flips the same coins;
    without, it holds how often this object has seen the prompt.
    """

    __name__ = "random"

    def __init__(self, seed: int = 0, probability: float = 0.5) -> None:
        if not 0.0 <= probability <= 1.0:
            raise PluginError(f"random: probability {probability} is not in [0, 1]")
        self.seed = seed
        self.probability = probability
        self.visits: Counter[str] = Counter()

    def __call__(
        self,
        *,
        completions: Sequence[str | list[Message]],
        prompts: Sequence[str | list[Message]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        **columns: Any,
    ) -> list[float]:
        """0.0 or 1.0 per completion."""
        asked = [text_of(p) for p in prompts] if prompts is not None else [""] * len(completions)
        step = getattr(trainer_state, "global_step", None)
        seen: Counter[tuple[str, str]] = Counter()
        flips: list[float] = []
        for row, prompt in enumerate(asked):
            said = text_of(completions[row])
            if completion_ids is not None:
                said = ",".join(str(int(token)) for token in completion_ids[row])
            when = f"visit {self.visits[prompt]}" if step is None else f"step {step}"
            key = repr((self.seed, when, prompt, said, seen[prompt, said]))
            seen[prompt, said] += 1
            draw = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
            flips.append(float(draw < self.probability * 2**64))
        self.visits.update(set(asked))
        return flips
