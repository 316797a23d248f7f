"""Consoles on which foreign text has no effect: no escape sequence, no markup.

By default Rich interprets `[red]`, `[link=…]` and `:smile:` in any string, and passes escape
sequences on. Here a string is only text, and so is a `Text`; for a style write `Text(…, style=…)`.
Every console of this package is one of these (a lint rule says so).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, cast

from rich import console as theirs
from rich import progress
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from grpo.errors.printable import printable, shown
from grpo.outside.terminal import streams
from grpo.outside.terminal.view import View


class Console(theirs.Console):  # noqa: TID251 - the one that others use
    """rich's console, on which all text is printable and no string is markup.

    view: gets everything in place of a stream.
    """

    def __init__(self, *, view: View | None = None, **options: Any) -> None:
        self.view = view
        super().__init__(markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich; to the view where there is one."""
        view = self.view
        if view is None:
            super().print(*objects, **options)
            return
        for one in objects:
            if isinstance(one, Table):
                view.table(*_texts(one))
            else:
                view.say(shown(one) if isinstance(one, str) else self._plain(one))

    def status(self, status: RenderableType, **options: Any) -> Any:
        """As rich, of work whose length nobody knows; on a view it is what begins now."""
        if self.view is None:
            return super().status(status, **options)
        self.doing(str(status))
        return nullcontext()

    def doing(self, what: str) -> None:
        """What begins now; only a view shows it."""
        if self.view is not None:
            self.view.doing(shown(what))

    def _plain(self, renderable: RenderableType) -> str:
        return "".join(segment.text for segment in self.render(renderable)).rstrip()

    @property
    def file(self) -> Any:
        """The stream behind the door, since rich's own escape sequences have to arrive."""
        return streams.behind(super().file)

    @file.setter
    def file(self, new_file: Any) -> None:
        self._file = new_file

    def on_broken_pipe(self) -> None:
        """The reader went away: as of any other write, where rich would leave by SystemExit."""
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        """`text` as it may be shown."""
        return super().render_str(shown(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As rich, of text that may be shown."""
        if isinstance(renderable, Text):
            renderable = clean(renderable)
        yield from super().render(renderable, options)


class Said(Text):
    """What a model says, inside a panel: not searched for keys, as its code has names for them."""


class TextColumn(progress.TextColumn):  # noqa: TID251 - likewise
    """A column of a progress bar whose text is no markup."""

    def __init__(self, text_format: str, style: str = "none") -> None:
        super().__init__(text_format, style=style, markup=False)


def _texts(table: Table) -> tuple[str, list[str], list[list[str]]]:
    """(title, headings, rows) of a table, as they may be shown."""

    def plain(cell: Any) -> str:
        return shown(cast(Text, cell).plain if isinstance(cell, Text) else str(cell or ""))

    columns = [[plain(cell) for cell in column.cells] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return plain(table.title), [plain(column.header) for column in table.columns], rows


def clean(text: Text) -> Text:
    """`text` as it may be shown, itself where nothing is changed; else without styles inside it."""
    plain = text.plain
    whole = printable(plain) if isinstance(text, Said) else shown(plain)
    if whole == plain:
        return text
    return text.blank_copy(whole)
