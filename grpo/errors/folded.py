"""How IPython shows an error of ours: a sentence, the user's lines, and the trace folded.

In a notebook the whole trace is an output that opens with a click, in a terminal the last lines.
Nothing here imports IPython before it is there.
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, field
from html import escape
from typing import Any

from grpo.errors.places import lines_of
from grpo.errors.printable import printable, redacted_text, shown

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"
_SENTENCE, _SOURCE, _TRACE = 2000, 300, 40_000  # the most characters of each
_STYLE = "white-space:pre-wrap;max-height:30em;overflow:auto"


@dataclass(kw_only=True)
class Led:
    """The user's lines that led to an error, and its trace, as text.

    shown: the execution counts of the cells that have shown it; IPython may ask more than once.
    """

    lines: list[tuple[str, str]]
    trace: str
    shown: set[Any] = field(default_factory=set[Any])

    @classmethod
    def of(cls, error: BaseException, before: BaseException | None = None) -> Led:
        """Of an error and of all it was raised from. before: see `lines_of`."""
        trace = shown("".join(traceback.format_exception(error)))
        if len(trace) > _TRACE:  # say, of a message that quotes a whole page
            trace = f"{trace[: _TRACE // 2]}\n[…]\n{trace[-_TRACE // 2 :]}"
        return cls(lines=lines_of(error, before), trace=trace)


def rendered(error: BaseException, led: Led) -> list[str]:
    """The lines that IPython prints for `error`. led: of it, or of the error that it stands for."""
    own = lines_of(error, error.__cause__ or error.__context__)
    said = [f"{_RED}{type(error).__name__}{_PLAIN}: {printable(str(error), width=_SENTENCE)}"]
    for place, source in dict([*own, *led.lines]).items():
        said += ["", place, f"    {printable(redacted_text(source), width=_SOURCE)}"]
    return said if _folded(led) else [*said, "", led.trace]


def _folded(led: Led) -> bool:
    """Show the whole trace, closed, where there is a page for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if getattr(shell, "kernel", None) is None:
        return False
    from IPython.display import display

    count = getattr(shell, "execution_count", 0)
    if count not in led.shown:
        led.shown.add(count)
        page = f'<summary>the whole trace</summary><pre style="{_STYLE}">{escape(led.trace)}</pre>'
        page = f'<details style="opacity:.75">{page}</details>'
        # As text for a console that a kernel serves; a page shows the other one.
        display({"text/html": page, "text/plain": led.trace}, raw=True)
    return True
