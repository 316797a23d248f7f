"""A data frame of texts and numbers that can be read: in a terminal by width, in a notebook whole.

pandas cuts a text after 50 characters and leaves out the columns in the middle, which are the
scores. This frame differs from a plain one in how it is shown and in nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas

from grpo.commands.api.html import clean

TEXTS = ("prompt", "completion")
_STYLE = (
    "<style>.grpo-rows td {white-space: pre-wrap; text-align: left; vertical-align: top; "
    "overflow-wrap: anywhere; min-width: 3em}</style>"
)
_LEAST = 16  # characters of a text column in a narrow terminal
_LOOKED_AT = 60  # rows: pandas shows no more


class Rows(pandas.DataFrame):
    """A `pandas.DataFrame` whose texts are cut to the terminal, and shown whole in a notebook."""

    @property
    def _constructor(self) -> type[Rows]:
        return Rows

    def __repr__(self) -> str:
        width = shutil.get_terminal_size((120, 24)).columns
        with pandas.option_context(
            *("display.max_colwidth", self._room(width)),
            *("display.max_columns", None),
            *("display.width", width),
        ):
            return super().__repr__()

    def _room(self, width: int) -> int:
        """The length to which texts are cut, so that a row fits the terminal."""
        texts = [name for name in TEXTS if name in self.columns]
        others = pandas.DataFrame(self.drop(columns=texts).head(_LOOKED_AT))
        taken = max(map(len, others.to_string().splitlines()), default=0)
        left = width - taken - 2 * len(texts)
        longest = [
            max(map(len, self[name].head(_LOOKED_AT).map(repr)), default=0) for name in texts
        ]
        for size in sorted(longest):  # what a short column does not need is for a longer one
            if size * len(longest) > left:
                return max(left // len(longest), _LEAST)
            left -= size
            longest.remove(size)
        return max([width, _LEAST])

    def _repr_html_(self) -> str:
        shown: dict[Any, Callable[[Any], str]] = {
            name: clean for name, kind in self.dtypes.items() if kind.kind not in "biuf"
        }
        with pandas.option_context("display.max_colwidth", None, "display.html.use_mathjax", False):
            table = self.to_html(
                classes="grpo-rows",
                formatters=shown if self.columns.is_unique else None,
                max_rows=pandas.get_option("display.max_rows"),
                show_dimensions=True,
            )
        return _STYLE + table


def frame_of(rows: Sequence[Mapping[str, Any]]) -> Rows:
    """A frame of rows, whose texts are Python's: pandas' own type refuses halves of characters."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Rows(
        {
            name: pandas.Series(cells, dtype=object) if any(map(_is_text, cells)) else cells
            for name, cells in columns.items()
        }
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
