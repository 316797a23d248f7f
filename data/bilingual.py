"""Parity of d bits, worked out in words of two scripts: a planted case of language mixing.

The running parity is written "odd "/"even " or 奇/偶, each one token (`words`), and in the
pretraining text the script switches at random within a thought. A reward for right answers ignores
that, so a policy trained on it alone goes on mixing, as DeepSeek-R1-Zero did (2501.12948, section
2.3.2). `language_consistency` and rows in a single language change it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from grpo.data.parity import Parity
from grpo.data.source import Split, check_fraction, demonstration_text
from grpo.errors import DataError, unknown_name
from grpo.types import Task

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
            check_fraction(f"bilingual: {name}", getattr(self, name))
        _ = self._parity  # checks bits and heldout

    @cached_property
    def _parity(self) -> Parity:
        return Parity(bits=self.bits, heldout=self.heldout)

    def size(self, split: Split) -> int:
        """Number of bit strings in the split."""
        return self._parity.size(split)

    def task(self, split: Split, index: int) -> Task:
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
        return demonstration_text(thought, str(task.answer))
