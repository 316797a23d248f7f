"""Parity of d bits: the smallest task on which thinking pays.

A tiny transformer cannot compute the parity of 16 bits in one forward pass, but it can carry a
running parity from token to token. Pretrained on a mixture of short and long answers it answers at
chance; reinforcement learning then discovers that the long form is right (arXiv 2510.11495).

`Bilingual` is the same in words of two scripts, a planted case of language mixing. The running
parity is written "odd "/"even " or 奇/偶, each one token (`words`), and in the pretraining text the
script switches at random within a thought. A reward for right answers ignores that, so a policy
trained on it alone goes on mixing, as DeepSeek-R1-Zero did (2501.12948, section 2.3.2).
`language_consistency` and rows in a single language change it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from grpo.data import source
from grpo.errors import DataError, unknown_name
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
        source.check_int("parity: bits", self.bits, 2, 256)
        source.check_fraction("parity: long_fraction", self.long_fraction)
        if self.heldout is not None:
            source.check_int("parity: heldout", self.heldout, 1, 2**self.bits - 1)

    def size(self, split: source.Split) -> int:
        """Number of bit strings in the split."""
        heldout = self.heldout or min(2048, 2**self.bits // 4)
        return heldout if split == "heldout" else 2**self.bits - heldout

    def task(self, split: source.Split, index: int) -> Task:
        source.check_index("parity", index, self.size(split))
        rank = index if split == "heldout" else self.size("heldout") + index
        digits = format(source.permuted(rank, 2**self.bits, "parity", self.bits), f"0{self.bits}b")
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
        return source.demonstration_text(thought, str(task.answer))


ENGLISH = ("even ", "odd ")  # by running parity; the space makes them words in decoded text
CHINESE = ("偶", "奇")
ENDINGS = {"parity": "=", "last": "-"}  # of the prompt: what is asked about the bits before


@dataclass(frozen=True, kw_only=True)
class Bilingual:
    """`Bilingual(bits=4)` asks "0110=" and expects "0"; a long thought is "even odd 偶偶", say.

    ask: "parity", or "last" for questions like "0110-", whose thought is always "-". english:
    chance that a thought begins in English; switch: chance that a word's script differs from that
    of the word before (english=1, switch=0: English throughout). Both kinds have the bit strings
    and splits of `parity` with as many bits; `heldout` as there.
    """

    bits: int = 14
    ask: Literal["parity", "last"] = "parity"
    long_fraction: float = 0.15
    english: float = 0.5
    switch: float = 0.3
    heldout: int | None = None

    def __post_init__(self) -> None:
        if self.ask not in ENDINGS:
            raise DataError(f"bilingual: {unknown_name('ask', self.ask, ENDINGS)}")
        for name in ("long_fraction", "english", "switch"):
            source.check_fraction(f"bilingual: {name}", getattr(self, name))
        _ = self._parity  # checks bits and heldout

    @cached_property
    def _parity(self) -> Parity:
        return Parity(bits=self.bits, heldout=self.heldout)

    def size(self, split: source.Split) -> int:
        """Number of bit strings in the split."""
        return self._parity.size(split)

    def task(self, split: source.Split, index: int) -> Task:
        task = self._parity.task(split, index)
        if self.ask == "parity":
            return task
        bits = str(task.prompt).removesuffix(ENDINGS["parity"])
        return Task(uid=f"last/{bits}", prompt=bits + ENDINGS["last"], answer=bits[-1])

    def alphabet(self) -> str:
        """Characters of prompts and demonstrations, those of the English words apart."""
        return self._parity.alphabet() + "".join(CHINESE)

    def words(self) -> tuple[str, ...]:
        """Texts of several characters that are one token each."""
        return ENGLISH

    def demonstration(self, task: Task, rng: random.Random) -> str:
        """Running parities in words with probability `long_fraction`, else the thought "-"."""
        assert isinstance(task.prompt, str)
        thought = "-"
        if self.ask == "parity" and rng.random() < self.long_fraction:
            thought, running = "", 0
            english = rng.random() < self.english
            for place, bit in enumerate(task.prompt.removesuffix(ENDINGS["parity"])):
                running ^= int(bit)
                english ^= place > 0 and rng.random() < self.switch
                thought += (ENGLISH if english else CHINESE)[running]
        return source.demonstration_text(thought, str(task.answer))
