"""The callbacks of an rl stage: functions that see every step, and may end the run.

A callback is called with each finished `Step` (`grpo/training/loop.py`). What it returns asks for
something after that step: "stop" (a checkpoint, the last evaluation, the model and the summary,
as at the end), "save" (a checkpoint), "evaluate" (the held-out tasks), several of them in a list,
or None. An object may have methods for other moments, all optional:

    begin(parts, start)       before anything else; parts: `TrainerParts`; start: steps done before
    begin_step(step)          before the batch of a step is taken
    evaluated(name, figures)  after an evaluation
    saved(step)               after a checkpoint
    end(step)                 after the last evaluation; step: the last one

Of several ranks the first calls them, and all do what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from grpo.errors import PluginError
from grpo.model.ranks import Ranks
from grpo.outside.code import plugins

STOP, SAVE, EVALUATE = "stop", "save", "evaluate"
ASKS = (STOP, SAVE, EVALUATE)


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """The callbacks by their names in the recipe, and the ranks that do what they ask for."""

    ranks: Ranks
    found: Sequence[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])

    def stepped(self, result: Any) -> frozenset[str]:
        """Call every callback with a `Step`; what they ask for. Raises PluginError."""
        asked: set[str] = set()
        for name, callback in self._own():
            where = f" (step {result.step})"
            answer = plugins.guard("callback", name, callback, where)(result)
            asked |= asks(name, answer)
        return frozenset(one for every in self.ranks.gather([sorted(asked)]) for one in every)

    def tell(self, moment: str, *what: Any) -> None:
        """Call the method `moment` of those that have it."""
        for name, callback in self._own():
            method = getattr(callback, moment, None)
            if callable(method):
                plugins.guard("callback", name, method, f" ({moment})")(*what)

    def tell_evaluated(self, name: str, found: Mapping[str, Any]) -> None:
        """`evaluated` of those that have it."""
        self.tell("evaluated", name, found[name])

    def _own(self) -> Sequence[tuple[str, Any]]:
        return self.found if self.ranks.rank == 0 else ()


def asks(name: str, answer: Any) -> set[str]:
    """What a callback returned, as a set. Raises PluginError for anything but `ASKS` and None."""
    if answer is None:
        return set()
    is_list = isinstance(answer, list | tuple | set | frozenset)
    found = list(cast("Sequence[Any]", answer)) if is_list else [answer]
    wrong = [one for one in found if one not in ASKS]
    if wrong:
        raise PluginError(
            f"callback {name!r} returned {answer!r:.60}; valid: None, {', '.join(map(repr, ASKS))} "
            "or a list of those"
        )
    return set(found)
