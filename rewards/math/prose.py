r"""What a sentence claims: its one value, its list of values, its words, or nothing.

An answer is paid only if all of it was read. Computer algebra looks for the last number of a text,
so it never sees prose: here a sentence is reduced to the formula that it asserts ("She has 12
marbles left." claims 12), is compared as words ("no real solution"), or claims nothing because it
guesses, denies, bounds or refers ("maybe 5", "not 5", "at least 5", "part 3", "1 2 3 4 5").

Numbers that a sentence only mentions are no part of its claim: "The 16 glasses cost $64 in 2 shops"
claims $64. A number is given where it stands in a sentence, not by what it is: counted after a
determiner ("the 16 glasses"), held by a preposition ("in 2 shops"), in the subject of a verb ("16
glasses cost"), or before the conclusion that is drawn from it ("10 birds and 4 flew away, so 6 are
left").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from grpo.rewards.math import hedges, vocabulary, words
from grpo.rewards.math.clauses import Token, places_of_values, tokens, words_of
from grpo.rewards.math.spelling import plain
from grpo.rewards.math.sums import worked

_HAN_COPULA = re.compile("[是为於于得]$")
_THEN = re.compile(
    r"\\(?:Rightarrow|implies|therefore|Longrightarrow)(?![A-Za-z])|[\u21d2\u2234]|=>"
)
_STATES = re.compile(r"[=<>\u2264\u2265]|\\(?:[lg]eq?|equiv|mid|in)(?![A-Za-z])")
MAX_VALUES = 32  # of one answer
_NUMBERED = re.compile(r"\([0-9]+\)")  # an equation's name
_NAME = re.compile(r"[A-Za-z] ?=")  # "x = 5 + 6 = 11": latex compares such a chain
_ASIDE = re.compile(r"[(\[]\s*(?:\\text\{\s*)?(?:or|and)\b")
_RELATING = vocabulary.RELATIVE | {"by", "as", "than", "from", "into", "on", "at"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    r"""What an answer says. `values` with the words after them, `said`: the words of the predicate.

    formula: no prose, `text` is it. values: one or several. words: no value. mixed: values and
    words that make no claim of one value. nothing: taken back, `why`.
    """

    kind: Literal["formula", "values", "words", "mixed", "nothing"]
    text: str
    values: tuple[tuple[str, tuple[str, ...]], ...] = ()
    said: tuple[str, ...] = ()
    headed: bool = False  # words come before the value
    about: bool = False  # approximately
    why: str = ""


@lru_cache(maxsize=8192)
def claim(text: str) -> Claim:
    """What an answer claims. Linear in its length; raises nothing."""
    found = tokens(plain(text))
    said = {token.text for token in found if token.kind == "word"}
    named = found and _NAME.match(found[0].text)
    why, value, unit = ("", None, []) if named else worked(found)
    if why:
        return Claim(kind="nothing", text=text, why=why)
    if value:
        made = ((value.text, tuple(unit)),)
        return Claim(kind="values", text=value.text, values=made, headed=True)
    if said <= {"and", "or"} and not _ASIDE.search(text):
        return Claim(kind="formula", text=_concluded(text))
    if any(token.kind == "question" for token in found):
        return Claim(kind="nothing", text=text, why="a question")
    found = _corrected(found)
    if _of_myself(found):
        return Claim(kind="nothing", text=text, why="about the answering")
    head, pre, tail = _clause(_asserted(found))
    if _claims_before(head):
        return Claim(kind="mixed", text=text, why="several claims")
    values = [token for token in tail if token.kind == "value"]
    outside = words_of((*head, *pre))
    said = words_of(head)
    failing = said[-2:] == ["to", "be"] and vocabulary.FAILING.intersection(said[-3:])
    if failing or hedges.doubts(outside, bool(values and head)) or hedges.denied_subject(said):
        return Claim(kind="nothing", text=text, why="not vouched for")
    if not values:
        said = words_of(tail or pre or found)
        return Claim(kind="words", text=text, said=tuple(said), headed=bool(head))
    return _valued(text, head, pre, tail)


def _valued(text: str, head: Sequence[Token], pre: Sequence[Token], tail: Sequence[Token]) -> Claim:
    """The claim of a sentence with values after its copula, `pre` between the two."""
    before = words_of(pre)
    if vocabulary.MODALS.intersection(before):
        return Claim(kind="nothing", text=text, why="not vouched for")
    count = len(places_of_values(tail))
    if count < 2 and {"or", "either"}.intersection(before):
        return Claim(kind="nothing", text=text, why="one of several")
    about = [word for word in before if word in vocabulary.ABOUT]
    if hedges.bounded([word for word in before if word not in vocabulary.ABOUT]):
        return Claim(kind="nothing", text=text, why="a bound, a negation or a name")
    named = words.number_of(before) is not None  # "eighteen (18)"
    if named and tail[0].text.strip("()") != str(words.number_of(before)):
        return Claim(kind="nothing", text=text, why="several values")
    numbered = before and not named and _NUMBERED.fullmatch(tail[0].text)
    if numbered and not any(map(_copula, head)):
        return Claim(kind="nothing", text=text, why="a reference")
    stated = "=" in tail[0].text or any(token.kind == "line" for token in pre)
    if not head and before and not stated and not named and hedges.fragment(before):
        return Claim(kind="nothing", text=text, why="no claim of it")
    sign = "-" if before and before[-1] in ("minus", "negative") else ""
    groups: list[tuple[str, list[str]]] = []
    if count > MAX_VALUES:
        return Claim(kind="nothing", text=text, why="many values")
    listed = True  # only separators between values
    for previous, token in zip((tail[0], *tail), tail, strict=False):
        if token.kind == "value":
            apart = token is tail[0] or previous.kind != "value"
            listed = listed and apart and (not groups or not groups[-1][1])
            groups.append((token.text if groups else sign + token.text, []))
        elif token.kind == "dots":
            return Claim(kind="nothing", text=text, why="a range")
        elif token.kind == "word":
            noun = token.text not in vocabulary.SEPARATORS or token is tail[-1]
            if noun or (groups[-1][1] and len(groups) == count):  # "5 apples and pears"
                groups[-1][1].append(token.text)
    after = words_of(tail)
    rest = words_of(tail[1:])
    about += [word for word in rest[:1] if word in vocabulary.ABOUT]
    if hedges.doubts(after, False) or hedges.trailing(rest) or hedges.predicated(rest):
        return Claim(kind="nothing", text=text, why="taken back")
    made = tuple((value, tuple(unit)) for value, unit in groups)
    kind = "values" if listed else "mixed"
    headed = bool(head or pre)
    return Claim(kind=kind, text=text, values=made, headed=headed, about=bool(about))


def _clause(found: Sequence[Token]) -> tuple[Sequence[Token], Sequence[Token], Sequence[Token]]:
    """(before the copula, between it and the first value, from the first value on).

    The copula is the last one with a value after it. Of a contrast ("not 3 but 5") the last part
    is read, if it and what comes before hold values.
    """
    found = _last_contrast(found)
    held = places_of_values(found)
    first = held[0] if held else len(found)
    last = held[-1] if held else -1
    for index in range(len(found) - 1, -1, -1):
        if _copula(found[index]) and (index < last or not held):
            rest = found[index + 1 :]
            start = next((i for i, t in enumerate(rest) if t.kind == "value"), len(rest))
            # a negation or a modal right before the copula is about what follows it
            near = [t for t in found[max(0, index - 2) : index] if t.kind == "word"]
            kept = [t for t in near if t.text in vocabulary.MODALS]
            kept += [t for t in near if t is found[index - 1] and hedges.denies(t.text)]
            if found[index].text in ("equal", "equals"):  # "greater than or equal to 5"
                kept += [t for t in found[max(0, index - 3) : index] if t.text == "than"]
            own = [found[index]] if not found[index].text.isascii() else []
            return found[: index + 1], [*kept, *own, *rest[:start]], rest[start:]
    return (), found[:first], found[first:]


def _corrected(found: Sequence[Token]) -> Sequence[Token]:
    """A sentence without the value it denies: "7, not 8", "it is not 6, it is 5"."""
    held = places_of_values(found)
    if len(held) != 2 or "or" in {token.text for token in found}:
        return found
    first, last = held
    if last > 1 and found[last - 1].text == "not" and found[last - 2].kind == "comma":
        return found[: last - 2] if last == len(found) - 1 else found
    rest = found[first + 1 :]
    if first and found[first - 1].text == "not" and rest[0].kind == "comma":
        return rest[1:] if any(map(_copula, rest[: last - first])) else found
    return found


def _of_myself(found: Sequence[Token]) -> bool:
    """Whether "I" did something in, after or with the only number: "I solved it in 5 minutes"."""
    held = places_of_values(found)
    placed = len(held) == 1 and held[0] and found[held[0] - 1].text in vocabulary.PLACING
    return bool(placed) and found[0].text == "i" and not any(map(_copula, found))


def _last_contrast(found: Sequence[Token]) -> Sequence[Token]:
    """What follows the last contrast ("not 3 but 5"), if both sides hold a value; else all."""
    held = places_of_values(found)
    if len(held) < 2:
        return found
    denied = next(
        (i for i, t in enumerate(found) if t.kind == "word" and hedges.denies(t.text)), len(found)
    )
    for index in range(held[-1] - 1, held[0], -1):
        token = found[index]
        contrasts = token.kind == "word" and token.text in vocabulary.CONTRAST
        if contrasts and (denied < index or token.text in ("which", "it's", "rather")):
            return found[index + 1 :]
    return found


def _claims_before(head: Sequence[Token]) -> bool:
    """Whether words before the last copula already claim something: "it is 3, it is 5".

    "Since the width is 5, the area is 20" and "it is 2 + 3, so it is 5" claim once.
    """
    said = words_of(head)
    if said.count("answer") > 1:
        return True
    if vocabulary.CONCLUDING.intersection(said):
        return False
    for index, token in enumerate(head[:-1]):
        if _copula(token):
            for later in head[index + 1 : -1]:
                if _copula(later) or later.kind == "comma" or later.text in _RELATING:
                    break
                if later.kind == "value":
                    return True
    return False


def _copula(token: Token) -> bool:
    if token.kind == "word" and not token.text.isascii():
        return bool(_HAN_COPULA.search(token.text)) or token.text in vocabulary.COPULAS
    return token.kind == "colon" or (token.kind == "word" and token.text in vocabulary.COPULAS)


def _concluded(text: str) -> str:
    """A formula, or what follows its last sign of conclusion: "2x = 10 => x = 5".

    Only a statement concludes anything: of "3 => 4" all is left.
    """
    *before, last = _THEN.split(text)
    stated = all(_STATES.search(part) or not part.strip(" $.") for part in before)
    return last.strip() if before and stated and last.strip(" $.") else text


_FUNCTION = (
    vocabulary.TAIL_ENDS | vocabulary.SEPARATORS | vocabulary.COPULAS | vocabulary.MAGNITUDES
) - {"long", "old", "tall", "wide", "high", "deep"}


def _asserted(found: Sequence[Token]) -> Sequence[Token]:
    """A sentence without the values it is only given, where one it asserts remains; else all.

    A list word or a preposition before what would remain leaves the sentence as it is.
    """
    held = places_of_values(found)
    if len(held) < 2 or any(token.text in ("or", "either", "nor") for token in found):
        return found
    found = _drawn(found)
    kept = [i for i, token in enumerate(found) if token.kind == "value" and not _given(found, i)]
    if len(kept) != 1 or (kept[0] and found[kept[0] - 1].text in vocabulary.PLACING):
        return found
    return [t for i, t in enumerate(found) if t.kind != "value" or i == kept[0]]


def _drawn(found: Sequence[Token]) -> Sequence[Token]:
    """What follows the last "so" or "therefore" of a sentence, if it holds a value; else all."""
    values = places_of_values(found)
    for index in range(values[-1] - 1, values[0], -1):
        if found[index].kind == "word" and found[index].text in vocabulary.CONSEQUENT:
            bare = all(token.kind == "value" and "=" not in token.text for token in found[:index])
            return found if bare else found[index + 1 :]  # "4 hence 5" concludes nothing
    return found


def _given(found: Sequence[Token], index: int) -> bool:
    """Whether the value at `index` counts something that the sentence speaks of."""
    after = words_of(found[index + 1 : index + 5])
    noun = found[index + 1 : index + 2]
    if not noun or noun[0].kind != "word" or noun[0].text in _FUNCTION:
        return False
    before = found[index - 1] if index else None
    if before is not None and before.kind == "word":
        two = found[index - 2].text if index > 1 else ""
        if two == "to" and any(token.kind == "value" for token in found[: index - 2]):
            return True  # "15 hours to clean 45 rooms"
        placed = before.text in vocabulary.PLACING and (two, before.text) not in _CLAIMED
        if placed or before.text in vocabulary.DEFINITE:
            return True
    opens = before is None or before.kind == "comma"
    return opens and bool(vocabulary.VERBS.intersection(after[1:4]))


# "a total of 5 apples", "it amounts to 5 apples": claimed although a preposition is before it
_CLAIMED = frozenset(
    {("total", "of"), ("sum", "of"), ("cost", "of"), ("out", "of"), ("profit", "of")}
    | {("consists", "of"), ("average", "of"), ("number", "of"), ("value", "of"), ("speed", "of")}
)
