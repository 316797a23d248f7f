"""Parity of d bits: the smallest task on which thinking pays.

A tiny transformer cannot compute the parity of 16 bits in one forward pass, but it can carry a
running parity from token to token. Pretrained on a mixture of short and long answers it answers at
chance; reinforcement learning then discovers that the long form is right (arXiv 2510.11495).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from grpo.data.source import (
    Split,
    check_fraction,
    check_index,
    check_int,
    demonstration_text,
    permuted,
)
from grpo.types import Task


@dataclass(frozen=True, kw_only=True)
class Parity:
    """`Parity(bits=4)` asks "0110=" and expects "0", the sum of the bits modulo 2.

    The 2**bits strings are put in one fixed pseudo-random order; the first `heldout` of them are
    the held-out split, the rest train. `chain=False` leaves the long form out of demonstrations.
    """

    bits: int = 16
    chain: bool = True
    long_fraction: float = 0.15
    heldout: int | None = None  # None: 2,048, or a quarter of the strings if that is less

    def __post_init__(self) -> None:
        check_int("parity: bits", self.bits, 2, 256)
        check_fraction("parity: long_fraction", self.long_fraction)
        if self.heldout is not None:
            check_int("parity: heldout", self.heldout, 1, 2**self.bits - 1)

    def size(self, split: Split) -> int:
        """Number of bit strings in the split."""
        heldout = self.heldout or min(2048, 2**self.bits // 4)
        return heldout if split == "heldout" else 2**self.bits - heldout

    def task(self, split: Split, index: int) -> Task:
        check_index("parity", index, self.size(split))
        rank = index if split == "heldout" else self.size("heldout") + index
        digits = format(permuted(rank, 2**self.bits, "parity", self.bits), f"0{self.bits}b")
        return Task(uid=f"parity/{digits}", prompt=f"{digits}=", answer=str(digits.count("1") % 2))

    def alphabet(self) -> str:
        """Characters of prompts and demonstrations."""
        return "01=-"

    def demonstration(self, task: Task, rng: random.Random) -> str:
        """Long form (running parities) with probability `long_fraction`, else the short form.

        Both carry the true label. The short form is nevertheless learned at chance level, since the
        model has nowhere to compute the label.
        """
        assert isinstance(task.prompt, str)
        thought = "-"
        if self.chain and rng.random() < self.long_fraction:
            thought, running = "", 0
            for bit in task.prompt.removesuffix("="):
                running ^= int(bit)
                thought += str(running)
        return demonstration_text(thought, str(task.answer))
