"""Base of the graded rewards: a number for how a completion is written, not whether it is right."""

from __future__ import annotations

from collections.abc import Sequence

from grpo.rewards.verifier import VerifierReward
from grpo.types import Score, Task


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

    def _all_graded(
        self, texts: Sequence[str], tasks: Sequence[Task], ids: Sequence[Sequence[int] | None]
    ) -> list[Score]:
        return list(map(self.grade, texts, ids, tasks))


def length_of(text: str, ids: Sequence[int] | None) -> tuple[int, str]:
    """(length, unit): tokens where ids are known, else words."""
    return (len(ids), "tokens") if ids is not None and len(ids) else (len(text.split()), "words")
