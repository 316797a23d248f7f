"""Does every verifier accept its own gold, and refuse a planted wrong answer?

A verifier that rejects a right answer trains the model away from it, and nobody sees it in a mean.
This goes through a data set's own golds, before any training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from grpo.rewards.math.exact import clean, number
from grpo.rewards.math.reward import gold_of
from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task

CHUNK = 64  # tasks verified together


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A gold answer that was refused ("gold"), or a wrong one that was accepted ("planted")."""

    reward: str
    task: str
    kind: str
    answer: str
    score: Score


@dataclass(slots=True)
class Checked:
    """How many tasks a reward was checked on, and how many had no gold to check it with."""

    tasks: int = 0
    skipped: int = 0


def completion_of(answer: str, program: bool) -> str:
    """A well-formed completion that gives this answer."""
    body = f"```python\n{answer}\n```" if program else f"<answer>{answer}</answer>"
    return f"<think>\nchecking\n</think>\n{body}"


def gold_answer(task: Task) -> tuple[str, bool] | None:
    """(the task's right answer, is it a program), None if the task does not carry one."""
    program = task.columns.get("tests") is not None
    names = ("canonical_solution", "solution", "code") if program else ("solution",)
    if task.answer is not None and not program:
        return gold_of(task.answer), False
    for name in names:
        value = task.columns.get(name)
        if isinstance(value, str) and value.strip():
            return value, program
    return None


def planted(answer: str, program: bool) -> str:
    """An answer that is wrong if `answer` is right."""
    if program:
        return "def planted():\n    return None"
    value = number(clean(answer))
    if value is not None:
        return str(value + 1)
    # one more term changes an expression's value; a sentence stops being the same sentence
    return f"{answer} + 1" if any(c in answer for c in "+-*/=^\\") else f"not {answer}"


def check(
    tasks: Iterable[Task], rewards: Sequence[tuple[str, Any]], counts: dict[str, Checked]
) -> Iterator[Fault]:
    """Faults in order, as they are found; `counts` is filled along the way.

    Only verifiers that judge an answer are checked; a reward for form has no gold.
    """
    judged = [(n, r) for n, r in rewards if isinstance(r, VerifierReward) and r.needs]
    counts.update({name: Checked() for name, _ in judged})
    rest = iter(tasks)
    while chunk := list(islice(rest, CHUNK)):
        yield from _check_chunk(chunk, judged, counts)


def _check_chunk(
    tasks: Sequence[Task], judged: Sequence[tuple[str, VerifierReward]], counts: dict[str, Checked]
) -> Iterator[Fault]:
    for name, reward in judged:
        pairs = [(task, gold_answer(task)) for task in tasks if reward.applies(task)]
        golds = [(task, *gold) for task, gold in pairs if gold is not None]
        counts[name].tasks += len(golds)
        counts[name].skipped += len(tasks) - len(golds)
        for kind in ("gold", "planted"):
            answers = [a if kind == "gold" else planted(a, p) for _, a, p in golds]
            programs = [program for _, _, program in golds]
            completions = list(map(completion_of, answers, programs))
            scores = reward.verify_all(completions, [task for task, _, _ in golds])
            for (task, _, _), answer, score in zip(golds, answers, scores, strict=True):
                accepted = score.value is not None and score.value >= 1.0
                if accepted != (kind == "gold"):
                    yield Fault(reward=name, task=task.uid, kind=kind, answer=answer, score=score)
