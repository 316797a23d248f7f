"""Knights and knaves: who tells the truth, from what everybody says (arXiv 2410.23123, 2502.14768).

Each of `people` says one thing, which is true if they are a knight and false if they are a knave.
Puzzles are drawn at random and kept if exactly one assignment of roles is consistent. Rewards
receive the column `roles`, JSON text such as {"Ada": "knight", "Bruno": "knave"}.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import product
from typing import Any

from grpo.data.source import Split, check_fraction, check_index, check_int, is_heldout, stable_hash
from grpo.errors import DataError
from grpo.types import Task

NAMES: tuple[str, ...] = (
    *("Ada", "Bruno", "Clara", "David", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas"),
    *("Karin", "Leon", "Maria", "Nadia", "Oscar", "Paula", "Quentin", "Rosa", "Simon", "Tara"),
)
PROMPT = (
    "On an island everybody is either a knight, who only says what is true, or a knave, who only "
    "says what is false. You meet {people}. {statements} Who is a knight, and who is a knave? "
    "Answer with one line for each of them, for example: (1) {first} is a knight"
)
# A statement is ("is", person, knight?), ("not", s), or one of JOINERS with two statements.
JOINERS = ("and", "or", "if", "iff")
Statement = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Knights:
    """`Knights(min_people=2, max_people=3)` draws puzzles with two or three people. Endless.

    max_depth: connectives inside one another; 0 leaves "Ada is a knave". Two puzzles that differ
    in names alone are one: they share a cluster and always lie in the same split.
    """

    min_people: int = 3
    max_people: int = 7
    max_depth: int = 2
    prompt: str = PROMPT
    heldout_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_int("knights: max_people", self.max_people, 2, 10)
        check_int("knights: min_people", self.min_people, 2, self.max_people)
        check_int("knights: max_depth", self.max_depth, 0, 4)
        check_fraction("knights: heldout_fraction", self.heldout_fraction, inclusive=False)
        for field in ("{people}", "{statements}"):
            if field not in self.prompt:
                raise DataError(f"knights: prompt {self.prompt!r} must show {field}")

    def size(self, split: Split) -> None:
        """None: drawn without end, so puzzles can come again within a split."""

    def task(self, split: Split, index: int) -> Task:
        """The task at `index`: the first draw of its own stream that belongs to the split."""
        check_index("knights", index, None)
        rng = random.Random(stable_hash("knights", split, index))
        while True:
            count = rng.randint(self.min_people, self.max_people)
            said = tuple(random_statement(rng, count, self.max_depth) for _ in range(count))
            roles = solve(said)
            if roles is None:
                continue
            key = f"knights/{stable_hash(json.dumps(said)):016x}"
            if is_heldout(key, self.heldout_fraction) == (split == "heldout"):
                break
        names = rng.sample(NAMES, count)
        people = f"{', '.join(names[:-1])} and {names[-1]}"
        lines = " ".join(
            f"{name} says: {spoken(statement, names)}."
            for name, statement in zip(names, said, strict=True)
        )
        found = {
            name: "knight" if knight else "knave" for name, knight in zip(names, roles, strict=True)
        }
        return Task(
            uid=f"{key}/{'-'.join(names)}",
            prompt=self.prompt.format(people=people, statements=lines, first=names[0]),
            answer=", ".join(f"{name} is a {role}" for name, role in found.items()),
            columns={"roles": json.dumps(found), "people": count},
            cluster=key,
        )


def random_statement(rng: random.Random, people: int, depth: int) -> Statement:
    """A statement about `people` persons with connectives up to `depth` levels."""
    kind = rng.choice(("is", "is", "not", *JOINERS)) if depth else "is"
    if kind == "is":
        return "is", rng.randrange(people), rng.random() < 0.5
    if kind == "not":
        return "not", random_statement(rng, people, depth - 1)
    left = right = random_statement(rng, people, depth - 1)
    while right == left:
        right = random_statement(rng, people, depth - 1)
    return kind, left, right


def holds(statement: Statement, knights: tuple[bool, ...]) -> bool:
    """Whether a statement is true where `knights` says who is one."""
    match statement:
        case ("is", person, knight):
            return knights[person] == knight
        case ("not", inner):
            return not holds(inner, knights)
        case (kind, left, right):
            a, b = holds(left, knights), holds(right, knights)
            return {"and": a and b, "or": a or b, "if": not a or b, "iff": a == b}[kind]
        case _:
            raise ValueError(f"not a statement: {statement!r}")


def solve(said: tuple[Statement, ...]) -> tuple[bool, ...] | None:
    """The one assignment under which knights alone say what is true; None if it is not one."""
    found: tuple[bool, ...] | None = None
    for knights in product((True, False), repeat=len(said)):
        if all(holds(s, knights) == k for s, k in zip(said, knights, strict=True)):
            if found is not None:
                return None
            found = knights
    return found


def spoken(statement: Statement, names: list[str]) -> str:
    """The statement in English, parenthesized where it could be read in two ways."""

    def inner(part: Statement) -> str:
        text = spoken(part, names)
        return text if part[0] == "is" else f"({text})"

    match statement:
        case ("is", person, knight):
            return f"{names[person]} is a {'knight' if knight else 'knave'}"
        case ("not", part):
            return f"it is not true that {inner(part)}"
        case ("if", left, right):
            return f"if {inner(left)} then {inner(right)}"
        case ("iff", left, right):
            return f"{inner(left)} if and only if {inner(right)}"
        case (kind, left, right):
            return f"{inner(left)} {kind} {inner(right)}"
        case _:
            raise ValueError(f"not a statement: {statement!r}")
