"""One output of a notebook's cell that can be drawn anew; nothing outside a notebook.

Of the standard library alone, since the first word of a cell comes before anything is imported or
installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grpo.commands.api import html

_spare: tuple[int, Any] | None = None  # (execution count, handle) of an output that says nothing


def shell() -> Any:
    """The IPython of a notebook's kernel; None in a terminal and in a script."""
    found = sys.modules.get("IPython")
    here = found.get_ipython() if found is not None else None
    return here if getattr(here, "kernel", None) is not None else None


@contextmanager
def loading(what: str) -> Iterator[None]:
    """Say what is being loaded, in a notebook; a run of the same cell takes the output over."""
    global _spare
    here = shell()
    if here is None:
        yield
        return
    handle = begun(here, html.small(f"{html.safe(what)} …"))
    try:
        yield
    finally:
        _spare = here.execution_count, handle
        update(handle, "")


def begun(here: Any, content: str) -> Any:
    """An output of the running cell that can be updated: the one that says nothing, or a new."""
    global _spare
    from IPython.display import HTML, display

    if _spare is not None and _spare[0] == here.execution_count:
        handle = _spare[1]
        update(handle, content)
    else:
        handle = display(HTML(content), display_id=True)
    _spare = None
    return handle


def update(handle: Any, content: str) -> None:
    from IPython.display import HTML

    handle.update(HTML(content))
