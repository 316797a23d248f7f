"""Pieces of HTML for a notebook: escaped, in the colors of the page, without scripts.

They are read in light and in dark pages, so lines and muted text are translucent, and text has the
page's own color.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

LINE = "1px solid rgba(128,128,128,.4)"
IGNORED = "tex2jax_ignore mathjax_ignore"  # or dollar signs would become formulas
SHOWN = 600  # characters of a text
_WIDTH, _HEIGHT = 440, 90  # of the curve
_CELL = "padding:.15em .8em .15em 0;text-align:{};white-space:nowrap"
_MONO = "font-family:monospace;white-space:pre-wrap;overflow-wrap:anywhere;text-align:left"


def safe(value: Any) -> str:
    """A value as text that may stand between tags and in an attribute."""
    return escape(clean(value), quote=True)


def clean(value: Any) -> str:
    """A value as text that any page can hold: no control characters, no halves of characters.

    It is not escaped yet.
    """
    text = "" if value is None else str(value)
    return "".join("\ufffd" if _is_control(char) else char for char in text)


def _is_control(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs")


def box(name: str, parts: Sequence[str]) -> str:
    """A frame around the parts that are not empty. name: its class."""
    inside = "".join(f'<div style="margin-top:.7em">{part}</div>' for part in parts if part)
    return (
        f'<div class="{name} {IGNORED}" style="border:{LINE};border-radius:6px;'
        f'padding:.1em 1em .8em;max-width:60em;overflow-x:auto">{inside}</div>'
    )


def small(inside: str) -> str:
    """Muted text. inside: HTML."""
    return f'<div style="font-size:85%;opacity:.75">{inside}</div>'


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts; all columns but the first are numbers and stand right."""

    def line(cells: Sequence[str], tag: str, rule: str) -> str:
        sides = ["left", *["right"] * (len(cells) - 1)]
        each = "".join(
            f'<{tag} style="{_CELL.format(side)};{rule}">{safe(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        )
        return f'<tr style="background:none">{each}</tr>'

    body = "".join(line(row, "td", "border:none") for row in rows)
    head = line(headings, "th", f"border:none;border-bottom:{LINE}")
    return f'<table style="border-collapse:collapse;border:none">{head}{body}</table>'


def curve(name: str, values: Sequence[float]) -> str:
    """The values of every step as a picture; "" for fewer than two finite ones."""
    values = [value for value in values if abs(value) < 1e300]
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    points = " ".join(
        f"{i * (_WIDTH - 8) / (len(values) - 1) + 4:.1f},"
        f"{_HEIGHT - 4 - (value - low) / span * (_HEIGHT - 8):.1f}"
        for i, value in enumerate(values)
    )
    said = f"{name} of {len(values)} steps: {values[0]:.4g} to {values[-1]:.4g}"
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f'<polyline points="{points}" fill="none" stroke="#4a90d9" stroke-width="2"/></svg>'
    )
    # Jupyter leaves a drawing out of a notebook that it does not trust, and a picture in.
    picture = f"data:image/svg+xml,{quote(drawing)}"
    return (
        f'<img src="{picture}" width="{_WIDTH}" height="{_HEIGHT}" alt="{safe(said)}" '
        f'style="max-width:100%;border-bottom:{LINE}">'
        + small(f"{safe(said)} (lowest {low:.4g}, highest {high:.4g})")
    )


def sample(label: str, prompt: str, completion: str) -> str:
    """A completion after its prompt, each cut in the middle where it is long."""
    return (
        f'<div style="border-top:{LINE};padding:.3em 0">'
        f'<span style="font-size:85%">{safe(label)}</span>'
        f'<div style="{_MONO}"><bdi style="opacity:.65">{safe(_cut(prompt))}</bdi>'
        f"<bdi>{safe(_cut(completion))}</bdi></div></div>"
    )


def line(text: str) -> str:
    """A message as it stands in a log."""
    return f'<div style="{_MONO};font-size:85%"><bdi>{safe(text)}</bdi></div>'


def scroll(parts: Sequence[str]) -> str:
    """Parts below one another; a long list scrolls. parts: HTML."""
    if not parts:
        return ""
    return f'<div style="max-height:24em;overflow:auto">{"".join(parts)}</div>'


def _cut(said: str) -> str:
    return said if len(said) <= SHOWN else f"{said[: SHOWN // 2]} […] {said[-SHOWN // 2 :]}"
