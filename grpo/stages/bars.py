"""The progress bar of a long piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from grpo.outside.terminal.console import Console, TextColumn


@contextmanager
def bar(
    description: str, console: Console, *, remaining: bool = False
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal or a view, else nothing; yields a function of (done, total).

    remaining: whether the bar says how long the rest will take.
    """
    view = console.view
    if view is not None:
        try:
            yield lambda done, total: view.progress(description, done, total)
        finally:
            view.over(description)
        return
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TimeRemainingColumn()] if remaining else []
    shown = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bars:
        task = bars.add_task(description, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
