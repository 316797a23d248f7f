"""A data frame of texts and numbers that can be read: in a terminal by width, in a notebook whole.

pandas cuts a text after 50 characters and leaves out the columns in the middle, which are the
scores. This frame differs from a plain one in how it is shown and in nothing else.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import pandas

from grpo.commands.api.html import clean

TEXTS = ("prompt", "completion")
SCORES = "scores"  # entry of `attrs`: the names of columns that are colored
SIGNED = "advantage"  # of these the one whose sign counts
BLUE, ORANGE = "74,144,217", "217,130,43"  # told apart by most people who confuse colors
# Inside each cell, as Jupyter drops style sheets from a notebook that it does not trust.
_LEFT = '<div style="text-align:left">{}</div>'
_TEXT = (
    "font-family:monospace;text-align:left;white-space:pre-wrap;overflow-wrap:anywhere;"
    "max-height:12em;overflow:auto"
)
_NUMBER = "border-radius:3px;padding:0 .3em"
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
        options = ("display.max_colwidth", None, "display.html.use_mathjax", False)
        how: dict[str, Any] = {
            "classes": "grpo-rows",
            "max_rows": pandas.get_option("display.max_rows"),
            "show_dimensions": True,
        }
        with pandas.option_context(*options):
            # Cells are HTML of ours, so what pandas writes around them is escaped here.
            page = self.rename(index=_label, columns=_label)
            page.index.names = [name and _label(name) for name in self.index.names]
            page.columns.names = [name and _label(name) for name in self.columns.names]
            # By place: names may come twice, and a name of several levels has another form.
            cells: Any = [self._cells(name, i) for i, name in enumerate(self.columns)]
            if page.columns.nlevels == 1:
                page.columns = [
                    _LEFT.format(name) if cell is _text else name
                    for name, cell in zip(page.columns, cells, strict=True)
                ]
            return pandas.DataFrame.to_html(page, formatters=cells, escape=False, **how)

    def _cells(self, name: Any, at: int) -> Callable[[Any], str] | None:
        """What makes HTML of a cell of a column; None for numbers that mean nothing by color."""
        column: Any = self.iloc[:, at]
        if column.dtype.kind not in "biuf":
            return _text
        if name not in self.attrs.get(SCORES, ()):
            return None
        values = [float(value) for value in column.dropna() if math.isfinite(value)]
        most = max(map(abs, values), default=0.0)
        low, high = (
            (0.0, most) if name == SIGNED else (min(values, default=0.0), max(values, default=0.0))
        )
        span = high - low
        return lambda value: _number(value, low, span)


def _label(value: Any) -> Any:
    """A name of a row or column as HTML; numbers stay numbers."""
    return escape(clean(value)) if isinstance(value, str) else value


def _text(value: Any) -> str:
    return f'<div style="{_TEXT}"><bdi>{escape(clean(value))}</bdi></div>'


def _number(value: Any, low: float, span: float) -> str:
    """A score on a color as strong as its share of `span` above `low`; below it the other color."""
    if pandas.isna(value):
        return "NaN"
    share = (value - low) / span if span > 0 and math.isfinite(value) else 0.0
    color = BLUE if share >= 0 else ORANGE
    background = f"background:rgba({color},{abs(share) * 0.5:.2f})"
    return f'<div style="{_NUMBER};{background}">{value:.4g}</div>'


def frame_of(rows: Sequence[Mapping[str, Any]], scores: Sequence[str] = ()) -> Rows:
    """A frame of rows, whose texts are Python's: pandas' own type refuses halves of characters.

    scores: the columns that a notebook colors by value.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    frame = Rows(
        {
            name: pandas.Series(cells, dtype=object) if any(map(_is_text, cells)) else cells
            for name, cells in columns.items()
        }
    )
    frame.attrs[SCORES] = tuple(scores)
    return frame


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
