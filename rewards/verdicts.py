"""Who says right or wrong, and what was said.

Accuracy, pass@k and pass rates are shares of verdicts. A verifier gives verdicts. A reward for form
or length, a plain function and a reward model give numbers: those have a mean, and no accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from grpo.types import Score, Verifier

# A candidate that gives no answer, hangs or bursts a limit did not solve the task.
WRONG = ("wrong", "unparseable_answer", "timeout", "limit")


def judges(reward: Any) -> bool:
    """Whether a reward says right or wrong: a `Verifier` does, unless its `judges` is False."""
    return bool(getattr(reward, "judges", isinstance(reward, Verifier)))


def verdict(score: Score) -> bool | None:
    """Right, wrong, or None where nobody said either; of a sum, what its first verifier said."""
    if score.right is not None:
        return first_verdict(score.right.values())
    if score.value is None:
        return None
    return True if score.status == "correct" else False if score.status in WRONG else None


def first_verdict(said: Iterable[bool | None]) -> bool | None:
    """The first of several verdicts that is one."""
    return next((one for one in said if one is not None), None)
