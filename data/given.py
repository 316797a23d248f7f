"""The rows of a call of Python, as what a recipe's `object:NAME` leads to."""

from __future__ import annotations

from collections.abc import Sequence

from grpo.data.in_memory import Placed, table_of
from grpo.data.table import TableSource


class GivenRows:
    """Rows for `data.source` (called, it gives their tasks) or for a `data.path` (`rows`)."""

    def __init__(
        self, rows: Sequence[Placed], heldout_rows: Sequence[Placed] | None = None
    ) -> None:
        self.rows = rows
        self.heldout_rows = heldout_rows
        self._made: dict[tuple[str, str | None, float], TableSource] = {}

    def __call__(
        self,
        *,
        prompt: str = "prompt",
        answer: str | None = "answer",
        heldout_fraction: float = 0.1,
    ) -> TableSource:
        """The tasks, made once; arguments as of a file of rows. Raises DataError."""
        how = prompt, answer, heldout_fraction
        if how not in self._made:
            self._made[how] = table_of(
                self.rows,
                prompt=prompt,
                answer=answer,
                heldout_rows=self.heldout_rows,
                heldout_fraction=heldout_fraction,
            )
        return self._made[how]
