r"""Answers that are laid out in rows, and answers that no algebra can read.

Systems and cases are taken apart into rows and cells. The parser does not know sets by a rule
(\{2k : k \in \mathbb{Z}\}), remainders (7 \bmod 10), sets, statements, segments and vectors by
their letters (A \cup B, p \land q, \overline{AB}), or angles in minutes. These are compared as they
are written, without spacing.
"""

from __future__ import annotations

import re
from itertools import accumulate

from grpo.rewards.math.spelling import CLOSING, OPENING

MAX_ROWS = 32
_ENVIRONMENT = re.compile(
    r"(?:[A-Za-z](?:\([a-z]\))? ?= ?)?(?:\\\{ ?|\{ ?)?"
    r"\\begin ?\{(cases|dcases|array|aligned|align\*?|gathered|split)\}(?: ?\{[clr| ]{1,20}\})?"
    r"(.+)\\end ?\{\1\}(?: ?\.| ?\})?",
    re.DOTALL,
)
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in|equiv)(?![A-Za-z])")
_SAID = re.compile(
    r"\\\{.{1,200}(?::|\\in(?![A-Za-z])).{1,200}\\\}"
    r"|.{1,200}\\[bp]?mod(?![A-Za-z]).{1,80}"
    r"|[A-Za-z]'? ?(?:\\(?:cup|cap|setminus|land|lor|wedge|vee)(?![A-Za-z]) ?[A-Za-z]'? ?){1,8}"
    r"|\\(?:overline|overrightarrow|overleftrightarrow|vec) ?\{ ?[A-Z][A-Z' ]{1,8}\}"
    r"|[0-9]{1,3} ?° ?[0-9]{1,2} ?'(?: ?[0-9]{1,2} ?(?:''|\"))?"
)


def rows(text: str) -> list[tuple[str, ...]]:
    """The cells of each row of a system or of cases; none of anything else.

    A row is an equation (one cell; an & before its sign goes), or a value and its condition.
    """
    match = _ENVIRONMENT.fullmatch(text)
    if not match or "\\begin" in match[2]:
        return []
    found: list[tuple[str, ...]] = []
    for row in match[2].split("\\\\"):
        cells = [cell.strip(" ,;.") for cell in row.split("&")]
        if any(cells):
            merged = cells[:1]
            for cell in cells[1:]:
                if _RELATION.match(cell) or not merged[-1]:
                    merged[-1] = f"{merged[-1]} {cell}".strip()
                else:
                    merged.append(cell)
            found.append(tuple(cell for cell in merged if cell))
    lengths = {len(cells) for cells in found}
    equations = lengths == {1} and all(_RELATION.search(cells[0]) for cells in found)
    return found if 0 < len(found) <= MAX_ROWS and (equations or lengths == {2}) else []


def is_said(text: str) -> bool:
    """Whether a normalized text is an answer that is compared as it is written."""
    depths = [0, *accumulate((char in OPENING) - (char in CLOSING) for char in text)]
    return min(depths) == depths[-1] == 0 and _SAID.fullmatch(text) is not None


def squeezed(text: str) -> str:
    """A text without spacing and in one spelling of what differs by taste."""
    text = text.replace("\\overrightarrow", "\\vec").replace("\\pmod", "\\mod")
    text = re.sub(r"\s", "", text.replace("\\bmod", "\\mod"))
    return re.sub(r"\{([A-Za-z0-9])\}", r"\1", text)
