"""Base of the graded rewards: a number for how a completion is written, not whether it is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grpo.rewards.verifier import VerifierReward, columns_at, make_task, text_of
from grpo.types import Message, Score, Task


class GradedReward(VerifierReward):
    """Subclasses write `grade`, which may count tokens.

    Token ids are there in training; `grpo score` rows may bring `completion_ids`. Without them a
    length is a number of words, which is stated in the score's detail.
    """

    needs = ()
    judges = False

    def grade(self, text: str, ids: Sequence[int] | None, task: Task) -> Score:
        """The score of one completion from its text and token ids (None: unknown)."""
        raise NotImplementedError

    def verify(self, completion: str, task: Task) -> Score:
        """`grade` without token ids."""
        return self.grade(completion, None, task)

    def scores(
        self,
        *,
        completions: Sequence[str | list[Message]],
        prompts: Sequence[str | list[Message]] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[Score]:
        """One `Score` per completion, by TRL's calling convention."""
        rows = len(completions)
        asked = prompts if prompts is not None else [""] * rows
        tasks = [make_task(asked[row], columns_at(columns, row, rows)) for row in range(rows)]
        return [
            self.grade(
                text_of(completions[row]),
                completion_ids[row] if completion_ids is not None else None,
                tasks[row],
            )
            if self.applies(tasks[row])
            else Score(value=None, status="not_applicable")
            for row in range(rows)
        ]


def length_of(text: str, ids: Sequence[int] | None) -> tuple[int, str]:
    """(length, unit): tokens where ids are known, else words."""
    return (len(ids), "tokens") if ids is not None and len(ids) else (len(text.split()), "words")
