"""Countdown: reach a target from given integers with + - * /, each used exactly once.

Every instance is made from a random expression whose value is a positive whole number, so it can be
solved. Rewards receive the columns `numbers` and `target`; there is no gold answer, since many
expressions are right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Literal

from grpo.data import source
from grpo.errors import DataError
from grpo.types import Task

WORDS = (
    "Using the numbers {numbers}, write an expression that equals {target}. You may use + - * / "
    "and parentheses, and each number exactly once. Give the expression alone as the answer, "
    "for example (1 + 2) * 3."
)


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """`Countdown(style="plain")` asks "3,5,7:22=", one answer being "3*5+7". Endless.

    Two instances with the same sorted numbers and target are one problem: they share a cluster and
    always lie in the same split.
    """

    min_numbers: int = 3
    max_numbers: int = 4
    max_number: int = 99
    max_target: int = 100
    style: Literal["words", "plain"] = "words"
    prompt: str = WORDS
    long_fraction: float = 0.15
    max_tries: int = 3  # wrong attempts that a long demonstration shows at most
    heldout_fraction: float = 0.1

    def __post_init__(self) -> None:
        source.check_int("countdown: max_numbers", self.max_numbers, 2, 8)
        source.check_int("countdown: min_numbers", self.min_numbers, 2, self.max_numbers)
        source.check_int("countdown: max_number", self.max_number, 9)
        source.check_int("countdown: max_target", self.max_target, 9)
        source.check_int("countdown: max_tries", self.max_tries, 0)
        if self.style not in ("words", "plain"):
            raise DataError(f"countdown: style must be words or plain, not {self.style!r}")
        if "{numbers}" not in self.prompt or "{target}" not in self.prompt:
            raise DataError(
                f"countdown: prompt {self.prompt!r} must show {{numbers}} and {{target}}"
            )
        source.check_fraction("countdown: long_fraction", self.long_fraction)
        source.check_fraction("countdown: heldout_fraction", self.heldout_fraction, inclusive=False)

    def size(self, split: source.Split) -> None:
        """None: drawn without end, so problems can come again within a split."""

    def task(self, split: source.Split, index: int) -> Task:
        """The task at `index`: the first draw of its own stream that belongs to the split."""
        source.check_index("countdown", index, None)
        rng = random.Random(source.stable_hash("countdown", split, index))
        while True:
            count = rng.randint(self.min_numbers, self.max_numbers)
            numbers = [rng.randint(1, self.max_number) for _ in range(count)]
            solution, value = _random_expression(numbers, rng)
            if value is None or value.denominator != 1 or not 1 <= value <= self.max_target:
                continue
            target = int(value)
            key = f"{','.join(map(str, sorted(numbers)))}={target}"
            if source.is_heldout(key, self.heldout_fraction) == (split == "heldout"):
                break
        shown = ",".join(map(str, numbers))
        prompt = f"{shown}:{target}="
        if self.style == "words":
            prompt = self.prompt.format(numbers=numbers, target=target)
        return Task(
            uid=f"countdown/{shown}={target}",
            prompt=prompt,
            columns={"numbers": numbers, "target": target, "solution": solution},
            cluster=key,
        )

    def alphabet(self) -> str:
        """Characters of prompts and demonstrations in the plain style."""
        if self.style != "plain":
            raise DataError("countdown: only style 'plain' has demonstrations to pretrain on")
        return "0123456789+-*/()=,:;"

    def demonstration(self, task: Task, rng: random.Random) -> str:
        """With probability `long_fraction` attempts with their values, else "-", then a solution.

        A long thought is up to `max_tries` wrong expressions and then the right one, each as
        "3+5*7=38"; values that are no whole number are written as fractions.
        """
        solution, target = task.columns["solution"], task.columns["target"]
        thought = "-"
        if rng.random() < self.long_fraction:
            lines: list[str] = []
            for _ in range(rng.randint(0, self.max_tries)):
                attempt, value = _random_expression(task.columns["numbers"], rng)
                if value is not None and value != target:
                    lines.append(f"{attempt}={value}")
            thought = ";".join([*lines, f"{solution}={target}"])
        return source.demonstration_text(thought, solution)


_OPERATIONS = {"+": (1, add), "-": (1, sub), "*": (2, mul), "/": (2, truediv)}  # with priority


def _random_expression(numbers: list[int], rng: random.Random) -> tuple[str, Fraction | None]:
    """A random expression over all the numbers and its exact value (None: division by zero)."""
    terms: list[tuple[str, Fraction, int]] = [(str(n), Fraction(n), 3) for n in numbers]
    while len(terms) > 1:
        left = terms.pop(rng.randrange(len(terms)))
        right = terms.pop(rng.randrange(len(terms)))
        symbol = rng.choice("+-*/")
        priority, operation = _OPERATIONS[symbol]
        if symbol == "/" and right[1] == 0:
            return "", None
        value = operation(left[1], right[1])
        first = f"({left[0]})" if left[2] < priority else left[0]
        # a-(b-c) and a/(b*c) need their parentheses; a+(b+c) and a*(b*c) do not
        tight = right[2] < priority or (right[2] == priority and symbol in "-/")
        second = f"({right[0]})" if tight else right[0]
        terms.append((f"{first}{symbol}{second}", value, priority))
    return terms[0][0], terms[0][1]
