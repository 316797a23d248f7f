r"""Formulas whose signs take them back: "\neq 5", "< 5", "3 \to 4", "1, 2, \ldots", "5?", "7 12".

They hold the gold's number and are not equal to it, unless the gold has the same signs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from grpo.rewards.math import intervals
from grpo.rewards.math.clauses import relation
from grpo.rewards.math.exact import clean, number
from grpo.rewards.math.latex import structure
from grpo.rewards.math.spelling import normalize, plain

Compare = Callable[[str, str], bool | None]

# A gold with arrows or dots is compared as text: algebra would read its last number.
_ARROW = re.compile(
    r"\\(?:to|(?:[lL]ong)?(?:[lL]eft)?[rR]ightarrow|(?:long)?mapsto|implies|iff|leadsto)(?![A-Za-z])"
    r"|[\u2192\u21a6\u2194\u21d2\u21d4\u27f6\u27f9\u27fa]|[-=]>"
)
_DOTS = re.compile(r"\\[lcv]?d?dots[cbmio]?(?![A-Za-z])|\.\.+|\u2026|\u22ef")
# Signs that make a formula no value, unless the gold has them too.
_TAKEN_BACK = (
    re.compile(r"\\(?:lor|vee|land|wedge|oplus)(?![A-Za-z])|[\u2228\u2227]|\|\||&&"),
    re.compile(r"\\(?:neq?|lnot|neg|not)(?![A-Za-z])|[\u2260\u00ac]|!=|=/="),
    re.compile(r"[?\uff1f]"),
    re.compile(r"[0-9A-Za-z)}] +(?:\||\\mid|\\vert|\\parallel) +[-+0-9A-Za-z\\]|[0-9] ?// ?[0-9]"),
    re.compile(r"[0-9] +[oy\u00f3] +[-+0-9\\]"),
    re.compile(r"[0-9] ?(?:~|\\sim|\u301c|\uff5e) ?[0-9]"),
)
_GAP = r"(?:\s|\\[;:, ]|~|\\q?quad(?![A-Za-z]))+"
_APART = re.compile(rf"(?<![0-9/.,_^{{])[0-9.]+{_GAP}[-+]?[0-9]")
_JOINED = re.compile(
    rf"(?<![0-9])[0-9]+{_GAP}[0-9]+ ?/ ?[0-9]+"
    rf"|(?<![0-9])[0-9]{{1,3}}(?:(?: |\\,|~)[0-9]{{3}})+(?![0-9])"
)
_OPEN_ENDED = re.compile(r"(?<![\^{(_])[-+<>~]$|(?:\\pm|\u00b1)$")
_APPROXIMATE = re.compile(
    r"\\(?:approx|sim|simeq|thickapprox|doteq)(?![A-Za-z])|[\u2248\u2243~\u223c]"
)
_COMPARES = re.compile(r"[<>\u2264\u2265]|\\(?:[lg](?:eq?|t|eqslant)|cup|in|infty)(?![A-Za-z])")
_BOUNDS = re.compile(
    r"[<>\u2264\u2265\u00b1]|\\(?:pm|mp)(?![A-Za-z])|\\(?:[lg](?:eq?|t|eqslant))(?![A-Za-z])"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """A verdict, the pair of formulas that algebra has to compare, or why nothing is claimed."""

    same: bool = False
    pair: tuple[str, str] | None = None
    why: str = ""


def formula(text: str, target: str, compare: Compare) -> Ruling:
    """A formula against the gold. It claims nothing where its signs take it back."""
    if "\\begin" not in text:
        text = text.replace("\\\\", ", ")
    if text.lstrip(" $").startswith("~") and "\\" not in text and not inexact(target):
        return Ruling(why="only about")
    text = text.lstrip(" $").removeprefix("=") if text.lstrip(" $").startswith("=") else text
    squeezed, wanted = _squeezed(text), _squeezed(target)
    if squeezed == wanted:
        return Ruling(same=True)
    region = intervals.read(normalize(text))
    if region and region.sure and intervals.read(normalize(target)):  # its signs say what it is
        same = compare(text, target)
        return Ruling(pair=(text, target)) if same is None else Ruling(same=same)
    for sign in (_ARROW, _DOTS):
        if sign.search(target):
            return Ruling(same=compare(text, target) is True)
        if sign.search(text):
            return Ruling(why="a range, not a value")
    bare = plain(text)
    if any(sign.search(bare) and not sign.search(target) for sign in _TAKEN_BACK):
        return Ruling(why="signs that take it back")
    if _OPEN_ENDED.search(squeezed) and not _OPEN_ENDED.search(wanted):
        return Ruling(why="open ended")
    if _APART.search(_JOINED.sub("0", bare)) and not _APART.search(target):
        return Ruling(why="several numbers")
    text, target, why = _approximated(text, target)
    if why:
        return Ruling(why=why)
    if relation(target) and relation(text) != relation(target):
        return Ruling(same=compare(text, target) is True)
    if relation(text) and not _COMPARES.search(target):
        return Ruling(why="a bound")
    if _BOUNDS.search(bare) and number(clean(target)) is not None:
        return Ruling(why="a bound, or two values")
    same = compare(text, target)
    if same is not True and (once := _once(text, target, compare)):
        return formula(once, target, compare)
    if same is not None:
        return Ruling(same=same)
    if _lists_for_one(text, target, compare):
        return Ruling(same=False)
    return Ruling(pair=(text, target))


def _squeezed(text: str) -> str:
    """A formula without spacing, and with one name for each kind of dots and arrows."""
    return re.sub(r"\s", "", _ARROW.sub(r"\\to ", _DOTS.sub("\u2026", normalize(text))))


def inexact(gold: str) -> bool:
    """Whether a gold is itself an approximation: a decimal, or one that says so."""
    return re.search(r"[0-9]\.[0-9]", gold) is not None or _APPROXIMATE.search(gold) is not None


def _approximated(text: str, gold: str) -> tuple[str, str, str]:
    r"""(answer, gold, why nothing is claimed) without signs of approximation.

    "\frac13 \approx 0.333" claims its first side where the gold is exact, its last where the gold
    is a decimal. "\approx 5" claims nothing where the gold is 5.
    """
    loose = inexact(gold)
    parts = [part.strip() for part in _APPROXIMATE.split(gold) if part.strip()]
    gold = parts[-1] if len(parts) > 1 or relation(gold) else gold
    if "~" in text and ("\\" in text or not text.lstrip().startswith("~")):
        text = text.replace("~", " ")  # LaTeX's space
    if not _APPROXIMATE.search(text):
        return text, gold, ""
    parts = [part.strip() for part in _APPROXIMATE.split(text)]
    if not loose:
        if re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", parts[0].lstrip(" $")) and parts[-1]:
            return parts[-1], gold, ""
        return parts[0], gold, "" if parts[0].strip(" $") else "only about"
    return parts[-1], gold, "" if parts[-1] else "open ended"


def _once(text: str, gold: str, compare: Compare) -> str:
    """The value of a list that states one value again and again, "" for any other text."""
    kind, parts = structure(normalize(text))
    if kind or len(parts) < 2 or len(structure(normalize(gold))[1]) != 1:
        return ""
    return parts[0] if all(compare(part, parts[0]) for part in parts[1:]) else ""


def _lists_for_one(text: str, gold: str, compare: Compare) -> bool:
    """Whether an answer lists several different values where the gold is a single one."""
    kind, parts = structure(normalize(text))
    gold_kind, gold_parts = structure(normalize(gold))
    if kind or gold_kind or len(parts) < 2 or len(gold_parts) != 1 or "\\begin" in gold:
        return False
    if "\\pm" in gold or "\\in" in text or any(_COMPARES.search(t) for t in (text, gold)):
        return False
    if re.fullmatch(r"[-+]?[0-9]+,[0-9]+", text.strip(" $")):
        return False  # a decimal comma, perhaps
    return not all(compare(part, parts[0]) for part in parts[1:])
