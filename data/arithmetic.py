"""Chains of sums and differences of small integers, with running totals as the optional thought."""

from __future__ import annotations

import random
from dataclasses import dataclass

from grpo.data import source
from grpo.errors import DataError
from grpo.types import Task


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """`Arithmetic(terms=3)` asks "7+12-4=" and expects "15". Endless; split by the expression."""

    terms: int = 3
    max_term: int = 20
    prompt: str = "{expression}="
    long_fraction: float = 0.15
    heldout_fraction: float = 0.1

    def __post_init__(self) -> None:
        source.check_int("arithmetic: terms", self.terms, 2, 100)
        source.check_int("arithmetic: max_term", self.max_term, 1)
        if "{expression}" not in self.prompt:
            raise DataError(f"arithmetic: prompt {self.prompt!r} must show {{expression}}")
        source.check_fraction("arithmetic: long_fraction", self.long_fraction)
        source.check_fraction(
            "arithmetic: heldout_fraction", self.heldout_fraction, inclusive=False
        )
        if (self.max_term + 1) ** self.terms * 2 ** (self.terms - 1) * self.heldout_fraction < 20:
            raise DataError("arithmetic: too few expressions to split; raise terms or max_term")

    def size(self, split: source.Split) -> None:
        """None: drawn without end, so expressions can come again within a split."""

    def task(self, split: source.Split, index: int) -> Task:
        """The task at `index`: the first draw of its own stream that belongs to the split."""
        source.check_index("arithmetic", index, None)
        rng = random.Random(source.stable_hash("arithmetic", split, index))
        while True:
            terms = [rng.randint(0, self.max_term) for _ in range(self.terms)]
            signs = [rng.choice("+-") for _ in range(self.terms - 1)]
            expression = str(terms[0]) + "".join(
                f"{sign}{term}" for sign, term in zip(signs, terms[1:], strict=True)
            )
            if source.is_heldout(expression, self.heldout_fraction) == (split == "heldout"):
                break
        totals = [terms[0]]
        for sign, term in zip(signs, terms[1:], strict=True):
            totals.append(totals[-1] + (term if sign == "+" else -term))
        return Task(
            uid=f"arithmetic/{expression}",
            prompt=self.prompt.format(expression=expression),
            answer=str(totals[-1]),
            columns={"totals": totals[1:]},
        )

    def alphabet(self) -> str:
        """Characters of prompts and demonstrations."""
        prompt = self.prompt.replace("{expression}", "")
        return "".join(sorted(set("0123456789+-;" + prompt)))

    def demonstration(self, task: Task, rng: random.Random) -> str:
        """Running totals with probability `long_fraction`, else "-" and the result at once."""
        long = rng.random() < self.long_fraction
        thought = ";".join(map(str, task.columns["totals"])) if long else "-"
        return source.demonstration_text(thought, str(task.answer))
