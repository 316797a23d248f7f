r"""The confined side of `math`: computer algebra on one pair, golds read once.

The parser can evaluate, loop for ever or eat all memory; here it is alone in a process that holds
nothing, sees nothing and is killed when its time is up. math-verify's own alarms stay off: they do
not fire in C code, nor with gmpy2 installed. Of math-verify this takes the parser (see `formula`)
and the comparison of two expressions; what it looks for in prose is no part of a verdict here.

Systems and cases are taken apart into rows and cells. The parser does not know sets by a rule
(\{2k : k \in \mathbb{Z}\}), remainders (7 \bmod 10), sets, statements, segments and vectors by
their letters (A \cup B, p \land q, \overline{AB}), or angles in minutes. These are compared as they
are written, without spacing.
"""

from __future__ import annotations

import logging
import re
import socket
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from grpo.rewards.math import intervals, units
from grpo.rewards.math.algebra import NoRegion, as_set, below_one, equal, same_set, value
from grpo.rewards.math.exact import number
from grpo.rewards.math.formula import expression, in_radians, may_be_complex
from grpo.rewards.math.latex import (
    PLUS_MINUS,
    assigned,
    both_signs,
    compare,
    is_variable,
    structure,
)
from grpo.rewards.math.spelling import CLOSING, OPENING, normalize
from grpo.rewards.sandbox.faults import MACHINERY, serve_judge, watch

_MAX_ROWS = 32
_ENVIRONMENT = re.compile(
    r"(?:[A-Za-z](?:\([a-z]\))? ?= ?)?(?:\\\{ ?|\{ ?)?"
    r"\\begin ?\{(cases|dcases|array|aligned|align\*?|gathered|split)\}(?: ?\{[clr| ]{1,20}\})?"
    r"(.+)\\end ?\{\1\}(?: ?\.| ?\})?",
    re.DOTALL,
)
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in|equiv)(?![A-Za-z])")
_AS_WRITTEN = re.compile(
    r"\\\{.{1,200}(?::|\\in(?![A-Za-z])).{1,200}\\\}"
    r"|.{1,200}\\[bp]?mod(?![A-Za-z]).{1,80}"
    r"|[A-Za-z]'? ?(?:\\(?:cup|cap|setminus|land|lor|wedge|vee)(?![A-Za-z]) ?[A-Za-z]'? ?){1,8}"
    r"|\\(?:overline|overrightarrow|overleftrightarrow|vec) ?\{ ?[A-Z][A-Z' ]{1,8}\}"
    r"|[0-9]{1,3} ?° ?[0-9]{1,2} ?'(?: ?[0-9]{1,2} ?(?:''|\"))?"
)


def _rows(text: str) -> list[tuple[str, ...]]:
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
    return found if 0 < len(found) <= _MAX_ROWS and (equations or lengths == {2}) else []


def _is_said(text: str) -> bool:
    """Whether a normalized text is an answer that is compared as it is written."""
    depths = [0, *accumulate((char in OPENING) - (char in CLOSING) for char in text)]
    return min(depths) == depths[-1] == 0 and _AS_WRITTEN.fullmatch(text) is not None


def _squeezed(text: str) -> str:
    """A text without spacing and in one spelling of what differs by taste."""
    text = text.replace("\\overrightarrow", "\\vec").replace("\\pmod", "\\mod")
    text = re.sub(r"\s", "", text.replace("\\bmod", "\\mod"))
    return re.sub(r"\{([A-Za-z0-9])\}", r"\1", text)


PACKAGES = ("math_verify", "latex2sympy2_extended", "sympy", "mpmath", "antlr4")
_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
_SET = "\\{\\}"
_CASES, _SAID = "cases", "said"
_LISTS = (_SET, "")
_ORDERED = ("()", "[]", "")

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """One answer, read whole: a formula and what it is counted in, a list of answers, a region."""

    text: str
    body: str
    kind: str
    unit: units.Unit | None = None
    size: int = 1
    parts: tuple[Read, ...] = ()
    region: intervals.Region | None = None


def _read(text: str, depth: int = 0) -> Read | None:
    """An answer read from end to end, None if a part of it cannot be read."""
    text = in_radians(normalize(text)).strip()
    if "\\begin" in text and (rows := _rows(text)):
        return _of_rows(text, rows, depth)
    if PLUS_MINUS.search(text):
        text = both_signs(text)
    body, unit, size = units.split(text)
    kind, pieces = structure(body)
    parts: tuple[Read, ...] = ()
    by_rule = kind == _SET and _is_said(text)  # its parts are no elements
    listed = len(pieces) > 1 or (kind and pieces and pieces[0] != body)
    if listed and not by_rule and depth < 4:
        parts = _all_read(pieces[:33], depth) or ()
    region = intervals.read(text)
    read = Read(text=text, body=body, unit=unit, size=size, kind=kind, parts=parts, region=region)
    if parts or (region and region.sure):
        return read
    if not by_rule and _expression(body, may_be_complex(body)) is not None:
        return read
    if _is_said(text):
        return Read(text=text, body=text, kind=_SAID)
    return None


def _all_read(texts: Sequence[str], depth: int) -> tuple[Read, ...] | None:
    """Parts of an answer, None if one of them cannot be read."""
    found = tuple(read for text in texts if (read := _read(text, depth + 1)))
    return found if len(found) == len(texts) else None


def _of_rows(text: str, rows: list[tuple[str, ...]], depth: int) -> Read | None:
    """A system as the list of its equations, cases as a set of (value, condition)."""
    if depth > 3:
        return None
    if all(len(cells) == 1 for cells in rows):
        return _read(", ".join(cells[0] for cells in rows), depth + 1)
    parts: list[Read] = []
    for cells in rows:
        read = _all_read(cells, depth)
        if read is None:
            return None
        row = f"({', '.join(cells)})"
        parts.append(Read(text=row, body=row, kind="()", parts=read))
    return Read(text=text, body=text, kind=_CASES, parts=tuple(parts))


def _expression(text: str, imaginary: bool) -> Any:
    """`formula.expression`, None also where the parser breaks on the text."""
    try:
        return expression(text, imaginary)
    except (MemoryError, *MACHINERY):
        raise
    except Exception:
        return None


def _claims(text: str) -> list[Read]:
    """The readings of an answer: the whole, or both sides of a \\approx b if they are near."""
    sides = normalize(text).split("\\approx")
    if len(sides) == 1:
        read = _read(text)
        return [read] if read else []
    first = sides[0].strip()
    if not first:
        sides = sides[1:]
    elif (name := assigned(first)) is not None:
        sides[0] = name[1]
    read = [_read(side) for side in (sides[1:] if is_variable(first) else sides)]
    found = [side for side in read if side]
    values = [_number(side) for side in found]
    near = all(abs(value - values[0]) <= 0.02 * abs(values[0]) for value in values[1:])
    return found[:1] + found[1:][-1:] if len(found) == len(read) and near else []


def _number(read: Read) -> float:
    """The value of a formula, not a number where it has none."""
    try:
        return float(_expression(read.body, False) * read.size)
    except (TypeError, ValueError, AttributeError):
        return float("nan")


@lru_cache(maxsize=4096)
def _gold(text: str) -> list[Read]:
    """The readings of a gold. It is trusted: of a chain that cannot be read whole the last side."""
    found = _claims(text)
    if not found and text.count("=") > 1 and "," not in text:
        found = _claims(text.rpartition("=")[2].replace("$", ""))
    return found


def warm_up() -> None:
    """Load what golds and answers need in the zygote, so that every worker is forked with it."""
    for gold, answer in (
        ("\\frac{1}{2}x+1", "1+x/2"),
        ("(1,2]", "[1,2)"),
        ("\\sqrt{2}", "1.41"),
        ("[2,\\infty)", "x \\ge 2"),
    ):
        for theirs, mine in zip(_gold(gold), _claims(answer), strict=True):
            _same(theirs, mine)


def _same(gold: Read, answer: Read) -> bool:
    """Whether two answers are equal, all of each."""
    if _SAID in (gold.kind, answer.kind):
        return _squeezed(gold.text) == _squeezed(answer.text)
    if _CASES in (gold.kind, answer.kind):
        same_length = gold.kind == answer.kind and len(gold.parts) == len(answer.parts)
        return same_length and _matched(list(gold.parts), list(answer.parts))
    if not units.alike(answer.unit, gold.unit):
        return False
    if (answer.region and answer.region.sure) or (gold.region and gold.region.sure):
        verdict = _same_region(gold, answer)
        if verdict is not None:
            return verdict
    if (gold.kind == _SET) != (answer.kind == _SET):  # {(1, 2)} is its one element
        of = gold if gold.kind == _SET else answer
        if len(of.parts) == 1:
            pair = (of.parts[0], answer) if of is gold else (gold, of.parts[0])
            return _same_part(*pair)
    listed = answer.parts and gold.parts and len(answer.parts) == len(gold.parts)
    if listed and answer.kind in _LISTS and gold.kind in _LISTS:
        return _matched(list(gold.parts), list(answer.parts))
    if listed and (answer.kind == gold.kind or {answer.kind, gold.kind} <= set(_ORDERED)):
        return all(map(_same_part, gold.parts, answer.parts))
    if answer.parts and gold.parts and {answer.kind, gold.kind} == {_SET, "()"}:
        return False
    if not listed and (comma := _decimal_comma(gold, answer)) is not None:
        return comma
    return _same_value(gold, answer)


def _decimal_comma(gold: Read, answer: Read) -> bool | None:
    """The verdict where one of two numbers has a decimal comma (1,22); None where none has."""
    for one, other in ((gold.body, answer.body), (answer.body, gold.body)):
        if _COMMA.fullmatch(one) and number(other) is not None:
            return number(one.replace(",", ".")) == number(other)
    return None


def _same_part(gold: Read, answer: Read) -> bool:
    verdict = compare(answer.text, gold.text)
    return _same(gold, answer) if verdict is None else verdict


def _matched(golds: list[Read], answers: list[Read]) -> bool:
    """Whether the parts pair up. Equality is transitive, so the first equal part may be taken."""
    for gold in golds:
        found = next((a for a in answers if _same_part(gold, a)), None)
        if found is None:
            return False
        answers.remove(found)
    return True


def _same_region(gold: Read, answer: Read) -> bool | None:
    """Whether two regions are the same; None where one is none, or has no one variable."""
    if not gold.region or not answer.region:
        return None
    names = gold.region.names | answer.region.names
    if len(names) > 1 and gold.region.names and answer.region.names:
        return None if gold.region.two_names and answer.region.two_names else False

    def read(text: str) -> Any:
        return _expression(normalize(text), False)

    try:
        mine, theirs = as_set(answer.region, read), as_set(gold.region, read)
        return same_set(mine, theirs, lambda a, b: equal(b, a))
    except NoRegion:
        return None


def _same_value(gold: Read, answer: Read) -> bool:
    imaginary = may_be_complex(gold.body) or may_be_complex(answer.body)
    imaginary = imaginary and "\\vec" not in gold.body + answer.body
    theirs, mine = _expression(gold.body, imaginary), _expression(answer.body, imaginary)
    if theirs is None or mine is None:
        return False
    mine, theirs = value(mine, theirs), value(theirs, mine, trusted=True)
    if mine is None or theirs is None:
        return False
    factor = units.ratio(answer.unit, gold.unit) * answer.size
    if factor != 1:
        mine = mine * factor.numerator / factor.denominator
    if gold.size != 1:
        theirs = theirs * gold.size
    percent, gold_percent = units.is_percent(answer.unit), units.is_percent(gold.unit)
    if percent != gold_percent and answer.unit != gold.unit:
        share, hundredths = (theirs, mine) if percent else (mine, theirs)
        if equal(share * 100, hundredths):
            return True
        return not below_one(share) and equal(share, hundredths)
    return equal(theirs, mine)


def judge(gold: str, answer: str, at_answer: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """{"gold": parsed?, "answer": parsed?, "same": …}; `at_answer` is called before the answer is
    read. Raises MemoryError, and MACHINERY or GraderFault where the grader itself fails.

    Whatever else is raised comes from the text that is read: parsers and SymPy raise all kinds of
    errors on formulas that make no sense. A gold of that kind cannot be used. An answer of that
    kind is wrong and not a fault of the grader, or a policy would learn to break it: unscored
    completions leave the baseline, wrong ones do not.
    """
    try:
        theirs = _gold(gold)
    except (MemoryError, *MACHINERY):
        raise
    except Exception:
        theirs = []
    at_answer()
    if not theirs:
        return {"gold": False, "answer": True, "same": False}
    try:
        mine = _claims(answer)
        same = any(_same(theirs_one, mine_one) for mine_one in mine for theirs_one in theirs)
    except (MemoryError, *MACHINERY):
        raise
    except Exception:
        mine, same = [], False
    return {"gold": True, "answer": bool(mine), "same": same}


def trial() -> str:
    """What goes wrong with a right and a wrong answer whose algebra imports modules late, or ""."""
    watch(PACKAGES)
    # An identity of sines: SymPy imports modules of sets when it simplifies these.
    gold = "\\sin^2 x"
    for answer, right in (("1-\\cos^2 x", True), ("1-\\cos x", False)):
        found = judge(gold, answer)
        if found != {"gold": True, "answer": True, "same": right}:
            return f"{answer!r} against {gold!r} came out as {found}"
    return ""


def serve(channel: socket.socket) -> None:
    """Answer `judge`'s dict, or {"fault": why}, to each {"gold", "answer"}."""
    serve_judge(channel, PACKAGES, judge)


warm_up()
