"""Products of two integers, split by unordered pair: 7*8 and 8*7 are never on different sides.

`digits=2` draws both factors from 10..99, `lo=2, hi=12` from a small table. With style "plain" the
prompt is "12*34=" and the source can demonstrate partial products (and check them by swapping the
factors) to a tiny base model; with style "words" it asks a pretrained model through `prompt`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import isqrt
from typing import Literal

from grpo.data import source
from grpo.errors import DataError
from grpo.types import Task


@dataclass(frozen=True, kw_only=True)
class Multiplication:
    """`Multiplication(lo=2, hi=12)` asks "What is 7 * 8?" and expects "56".

    Pairs of different factors and squares are put in one fixed pseudo-random order each;
    `heldout_pairs` unordered pairs, in the same proportion of both, are held out. Every pair of
    different factors gives two tasks (a*b and b*a), which share a cluster.
    """

    lo: int | None = None
    hi: int | None = None
    digits: int | None = None
    style: Literal["words", "plain"] = "words"
    prompt: str = "What is {a} * {b}?"
    heldout_pairs: int | None = None  # None: 1,024, or a third of the pairs if that is less
    long_fraction: float = 0.15
    verify_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.digits is not None:
            source.check_int("multiplication: digits", self.digits, 1, 100)
        if (self.digits is None) == (self.lo is None and self.hi is None):
            raise DataError("multiplication: give either digits, or both lo and hi")
        if self.digits is None:
            source.check_int("multiplication: lo", self.lo, 0)
            source.check_int("multiplication: hi", self.hi, 1)
        lo, hi = self.bounds
        if hi <= lo:
            raise DataError(f"multiplication: lo={lo} must be below hi={hi}")
        if self.style not in ("words", "plain"):
            raise DataError(f"multiplication: style must be words or plain, not {self.style!r}")
        try:
            asked = self.prompt.format(a=lo, b=hi)
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"multiplication: prompt {self.prompt!r} must use {{a}} and {{b}} only"
            ) from error
        if str(lo) not in asked or str(hi) not in asked:
            raise DataError(f"multiplication: prompt {self.prompt!r} must show {{a}} and {{b}}")
        source.check_fraction("multiplication: long_fraction", self.long_fraction)
        source.check_fraction("multiplication: verify_fraction", self.verify_fraction)
        n = hi - lo + 1
        pairs = n * (n + 1) // 2
        if self.heldout_pairs is not None:
            source.check_int("multiplication: heldout_pairs", self.heldout_pairs, 1, pairs - 1)

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest factor."""
        if self.digits is not None:
            return (10 ** (self.digits - 1) if self.digits > 1 else 0), 10**self.digits - 1
        assert self.lo is not None
        assert self.hi is not None
        return self.lo, self.hi

    def _counts(self, split: source.Split) -> tuple[int, int]:
        """Pairs of different factors, and squares, in the split."""
        lo, hi = self.bounds
        n = hi - lo + 1
        mixed, total = n * (n - 1) // 2, n * (n + 1) // 2
        heldout = self.heldout_pairs or min(1024, max(1, total // 3))
        squares = min(n, round(heldout * n / total))
        if heldout - squares > mixed:
            squares = heldout - mixed
        held = heldout - squares, squares
        return held if split == "heldout" else (mixed - held[0], n - held[1])

    def size(self, split: source.Split) -> int:
        """Number of ordered products in the split."""
        mixed, squares = self._counts(split)
        return 2 * mixed + squares

    def task(self, split: source.Split, index: int) -> Task:
        source.check_index("multiplication", index, self.size(split))
        # Mixed, so that the first tasks of a split stand for all of it, squares included.
        index = source.permuted(index, self.size(split), "mixed", split)
        lo, hi = self.bounds
        n = hi - lo + 1
        mixed, _ = self._counts(split)
        before = (0, 0) if split == "heldout" else self._counts("heldout")
        if index < 2 * mixed:
            pair, swap = divmod(index, 2)
            rank = source.permuted(before[0] + pair, n * (n - 1) // 2, "multiplication", lo, hi)
            # rank counts the pairs (small, large) in the order (0,1), (0,2), (1,2), (0,3), …
            large = (1 + isqrt(1 + 8 * rank)) // 2
            small = rank - large * (large - 1) // 2
            a, b = (large, small) if swap else (small, large)
        else:
            a = b = source.permuted(before[1] + index - 2 * mixed, n, "squares", lo, hi)
        a, b = lo + a, lo + b
        text = f"{a}*{b}=" if self.style == "plain" else self.prompt.format(a=a, b=b)
        return Task(
            uid=f"multiplication/{a}x{b}",
            prompt=text,
            answer=str(a * b),
            columns={"a": a, "b": b},
            cluster=f"{min(a, b)}x{max(a, b)}",
        )

    def alphabet(self) -> str:
        """Characters of prompts and demonstrations in the plain style."""
        if self.style != "plain":
            raise DataError("multiplication: only style 'plain' has demonstrations to pretrain on")
        return "0123456789*+=;-?"

    def demonstration(self, task: Task, rng: random.Random) -> str:
        """Long form with probability `long_fraction`, else "-" and the product at once.

        A long thought gives one partial product a digit and running sums; with probability
        `verify_fraction` it goes on with "?" and the same product with the factors swapped.
        """
        a, b = task.columns["a"], task.columns["b"]
        thought = "-"
        if rng.random() < self.long_fraction:
            thought = _partial_products(a, b)
            if rng.random() < self.verify_fraction:
                thought += "?" + _partial_products(b, a)
        return source.demonstration_text(thought, str(task.answer))


def _partial_products(a: int, b: int) -> str:
    """For 12 and 34: "12*4=48;12*30=360;48+360=408"; one line where `b` has one digit."""
    lines: list[str] = []
    total: int | None = None
    for place, digit in enumerate(reversed(str(b))):
        factor = int(digit) * 10**place
        lines.append(f"{a}*{factor}={a * factor}")
        if total is not None:
            lines.append(f"{total}+{a * factor}={total + a * factor}")
        total = (total or 0) + a * factor
    return ";".join(lines)
