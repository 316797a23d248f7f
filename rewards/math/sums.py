r"""Arithmetic inside a sentence: "She paid 3 * $4 = $12 for the books." claims $12.

What is claimed is the right side of the last equation. Words between the numbers ("5 apples + 7
apples = 12 apples") and numbers elsewhere in the sentence are only what it was worked out from. An
equation of numbers that does not hold claims nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from grpo.rewards.math import hedges, vocabulary, words
from grpo.rewards.math.clauses import Token, places_of_values, words_of
from grpo.rewards.math.exact import evaluate

MAX_VALUES = 64  # of one sentence
_SIGNS = re.compile(
    r"[-+*/=\u2212\u2013\u00d7\u00f7]|\\(?:cdot|times|div)(?![A-Za-z])|[xX](?= *\\?\$?[0-9])"
)
_OPEN = re.compile(r"(?:[-+*/=\u2212\u2013\u00d7\u00f7(]|\\(?:cdot|times|div)|(?<=[0-9] )[xX])\s*$")
_TIMES = re.compile(r"(?<=[0-9)]) *[xX](?= *[0-9.(])|(?<=[0-9)]) ?(?=\()|(?<=\))(?=[0-9])")
_CURRENCY = re.compile(r"\\?[$\u20ac\u00a3\u00a5]|(?<=[0-9])(?:,|\{,\})(?=[0-9]{3}(?![0-9]))")
_PERCENT = re.compile(r"([0-9.]+) ?\\?%")
_DECIMAL = re.compile(r"([0-9]*)\.([0-9]+)|([0-9]+)\.(?![0-9])")
_UNIT = re.compile(r"/? ?(?<![\\A-Za-z])[A-Za-z]{2,}")  # "bid + 3", "$18/bag"
_ENDS = frozenset({"or", "nor", "either", "but", "instead", "whether", "versus", "vs"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Equation:
    """The last equality of a chain: tokens `start` to `end` of a sentence, its two sides."""

    start: int
    end: int
    left: str
    right: str
    holds: bool


def value_of(text: str) -> Fraction | None:
    """The exact value of an expression of numbers, + - * / and brackets; None of anything else."""
    text = _CURRENCY.sub("", text.replace("{,}", ","))
    text = _PERCENT.sub(r"(\1/100)", _TIMES.sub("*", text))
    try:
        return evaluate(_DECIMAL.sub(_as_ratio, text))[0]
    except ValueError:
        return None


def _as_ratio(match: re.Match[str]) -> str:
    whole, decimals = match[1] or match[3] or "", match[2] or ""
    return f"({(whole + decimals).lstrip('0') or 0}/1{'0' * len(decimals)})"


def equations(found: Sequence[Token]) -> list[Equation]:
    """The equations of numbers in a sentence, in order: each run of values that signs join."""
    held = places_of_values(found)
    if not any("=" in found[index].text for index in held) or len(held) > MAX_VALUES:
        return []
    runs: list[list[int]] = []
    for index in held:
        if runs and _joined(found, runs[-1][-1], index):
            runs[-1].append(index)
        else:
            runs.append([index])
    return [made for run in runs if (made := _equation(found, run))]


def _bare(text: str) -> str:
    """A value without the words that stand in it."""
    return _UNIT.sub(lambda m: m[0] if m[0].strip("/ ") in vocabulary.FUNCTIONS else " ", text)


def _joined(found: Sequence[Token], before: int, index: int) -> bool:
    """Whether a sign, or "of" after a fraction, makes one expression of two values."""
    between = found[before + 1 : index]
    if any(token.kind != "word" for token in between):
        return False
    if len(between) == 1 and between[0].text == "of":
        return bool(re.search(r"[/%]", found[before].text))
    opened = _OPEN.search(_bare(found[before].text))
    return bool(opened or _SIGNS.match(_bare(found[index].text).lstrip()))


def _equation(found: Sequence[Token], run: Sequence[int]) -> Equation | None:
    """The last equality of a run of values, None if it has none or a side is no number."""
    text, units = "", list[str]()
    for previous, index in zip((run[0], *run), run, strict=False):
        text += " * " if found[index - 1].text == "of" and previous != index else " "
        after = found[index + 1 : index + 2]
        worded = bool(after) and after[0].kind == "word"
        bare = _bare(found[index].text)
        units += [words.stem(name.strip("/ ")) for name in _UNIT.findall(found[index].text)]
        text += bare.rstrip("/ ") if worded else bare  # "$3/week"
        if worded and after[0].text not in vocabulary.TAIL_ENDS:
            units.append(words.stem(after[0].text))
    sides = [side.strip() for side in text.strip().removeprefix("a ").split("=")]
    left, right = sides[-2] if len(sides) > 1 else "", sides[-1]
    mine, theirs = value_of(left), value_of(right)
    if mine is None or theirs is None or "=" not in found[run[-1]].text:
        return None
    one_unit = len(set(units)) < 2
    holds = not one_unit or _equal(mine, theirs, left, right)
    return Equation(start=run[0], end=run[-1] + 1, left=left, right=right, holds=holds)


def _equal(mine: Fraction, theirs: Fraction, left: str, right: str) -> bool:
    """Whether two sides are equal; a quotient or decimal may be rounded to the places shown."""
    if "%" in left or "%" in right:
        return any(_near(mine * k, theirs, right) for k in (1, 100, Fraction(1, 100)))
    exact = not re.search(r"[/.\u00f7]|div", left)
    return mine == theirs if exact else _near(mine, theirs, right)


def _near(mine: Fraction, theirs: Fraction, right: str) -> bool:
    places = len(re.sub(r"[^0-9]", "", right.partition(".")[2]))
    return abs(mine - theirs) * 2 * 10**places <= 1


def worked(found: Sequence[Token]) -> tuple[str, Token | None, list[str]]:
    """(why nothing is claimed, the value claimed, words after it); ("", None, []): no equation."""
    made = equations(found)
    if not made:
        return "", None, []
    last = made[-1]
    before, after = found[: last.start], found[last.end :]
    if _goes_on(after):
        return "", None, []
    if not last.holds:
        return "an equation that does not hold", None, []
    if len({value_of(each.right) for each in made}) > 1 and not _follows(found, made):
        return "several equations", None, []
    if _elsewhere(before, after, value_of(last.right)):
        return "several values", None, []
    head = words_of(before)
    rest = words_of(after)
    if _taken_back(head, rest):
        return "not vouched for", None, []
    return "", Token(kind="value", text=last.right), rest


def _follows(found: Sequence[Token], made: Sequence[Equation]) -> bool:
    """Whether the last equation goes on from one before it, or is drawn as the conclusion."""
    between = {token.text for token in found[made[-2].end : made[-1].start]}
    results = [value_of(each.right) for each in made[:-1]]
    used = [value_of(part) for part in re.findall(r"[0-9][0-9,.]*", made[-1].left)]
    return bool(between & vocabulary.DRAWN) or any(result in used for result in results)


def _goes_on(after: Sequence[Token]) -> bool:
    """Whether the sentence claims something after its last equation: "so the answer is 5"."""
    return any(
        token.kind == "value" and index and after[index - 1].text in vocabulary.COPULAS - {"be"}
        for index, token in enumerate(after)
    )


def _elsewhere(before: Sequence[Token], after: Sequence[Token], result: Fraction | None) -> bool:
    """Whether a value beside an equation is claimed too: bare, or after a word that claims."""
    for tokens in (before, after):
        for index, token in enumerate(tokens):
            if token.kind != "value" or value_of(token.text) == result:
                continue
            previous = tokens[index - 1] if index else None
            word = previous.text if previous and previous.kind == "word" else ""
            if tokens is after and (not word or word in vocabulary.CLAIMING):
                return True
            bare = index + 1 == len(tokens) or tokens[index + 1].kind != "word"
            if tokens is before and previous is None and bare:
                return True
    return False


def _taken_back(head: Sequence[str], rest: list[str]) -> bool:
    """Whether words before or after an equation disown it."""
    said = [word for word in head if word != "if"]  # a condition of the task
    if hedges.doubts(said, True) or hedges.doubts(rest, False) or _ENDS.intersection(said + rest):
        return True
    drawn = max((i for i, word in enumerate(said) if word in vocabulary.DRAWN), default=-1)
    near = said[-3:]
    bounded = vocabulary.BOUND.intersection(near) or any(map(hedges.denies, near))
    taken_back = hedges.trailing(rest[:4]) or vocabulary.FALSE.intersection(rest)
    return bool(bounded or taken_back) or hedges.denied_subject(said[drawn + 1 :])
