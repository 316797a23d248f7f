"""Every exception the toolkit raises on purpose.

    GrpoError
    ├── RecipeError (ValueError)       a key, value or combination in a recipe or an argument
    ├── PluginError (ValueError)       a plug-in name or path that does not lead to a callable
    ├── DataError (ValueError)         a row, column or file of tasks that cannot be used
    ├── RewardError (RuntimeError)     a reward raised, or returned something that is not a score
    ├── EngineError (RuntimeError)     an engine failed, lost a request or refused one
    │   ├── WeightsError               weights did not arrive, or are not the ones that were sent
    │   └── AgreementError             an engine does not sample from the policy that learns
    ├── MemoryShortage (MemoryError)   something does not fit, with the settings that need less
    ├── LearnerError (RuntimeError)    an update that cannot be made, say a gradient with NaN
    └── RunError (RuntimeError)        a run directory that cannot be written, read or resumed

The command line turns every `GrpoError` into one sentence and exit code 2; anything else is a
bug and keeps its traceback. `printable` is how foreign text is written in such a sentence.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from grpo.errors import folded
from grpo.errors.printable import printable, redacted_text

_LONGEST = 20_000  # characters of a message, which may quote what a server or a file says


class GrpoError(Exception):
    """Base of all errors raised on purpose; the message says what to do next.

    What it quotes can do nothing to a terminal, and shows no password (`grpo/errors/printable.py`).
    """

    _led: folded.Led | None = None

    def __str__(self) -> str:
        return printable(redacted_text(super().__str__()), width=_LONGEST)

    def stands_for(self, error: BaseException, before: BaseException | None) -> None:
        """Keep what `error`, which this one replaces, has to say in a notebook, and not its frames.

        They would keep a model in memory as long as the error is the last one. before: what the
        user was handling when the call began.
        """
        self._led = folded.Led.of(error, before)

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in place of a traceback."""
        if self._led is None:
            self._led = folded.Led.of(self)
        return folded.rendered(self, self._led)


class RecipeError(GrpoError, ValueError):
    """A recipe key, value or combination of values that cannot be run."""


class UnknownSettingError(RecipeError):
    """A recipe has a setting that this version does not know."""


class PluginError(GrpoError, ValueError):
    """A plug-in that cannot be found, loaded or called with the given arguments."""


class DataError(GrpoError, ValueError):
    """Tasks that cannot be read or used."""


class RewardError(GrpoError, RuntimeError):
    """A reward that raised, or returned something other than one number or None per completion."""


class EngineError(GrpoError, RuntimeError):
    """A rollout engine that failed, lost a request or refused one."""


class WeightsError(EngineError):
    """Weights that did not arrive in an engine, or are not the ones the learner sent."""


class AgreementError(EngineError):
    """An engine whose log-probs or whose samples are not those of the learner's policy."""


class MemoryShortage(GrpoError, MemoryError):
    """Not enough memory; the message has the settings that need less of it."""


class LearnerError(GrpoError, RuntimeError):
    """An update that cannot be made: a loss or gradient that is not a finite number."""


class RunError(GrpoError, RuntimeError):
    """A run directory that cannot be written, read or resumed."""


@contextmanager
def at(setting: str) -> Iterator[None]:
    """Errors of ours that are raised inside begin with the setting, unless they name it already."""
    try:
        yield
    except GrpoError as error:
        if str(error).startswith(setting):
            raise
        raise type(error)(f"{setting}: {error}") from error


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """One sentence for an unknown `name`, with close matches first and every valid choice after."""
    choices = sorted(valid)
    return f"unknown {kind} {name!r}.{did_you_mean(name, choices)} Valid: {', '.join(choices)}."


def did_you_mean(name: str, choices: Sequence[str], n: int = 3, cutoff: float = 0.6) -> str:
    """ " Did you mean 'a' or 'b'?" with up to `n` choices similar to `name`; "" if none is.

    cutoff: the least similarity, 0 to 1, as difflib measures it.
    """
    close = difflib.get_close_matches(name, choices, n=n, cutoff=cutoff)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
