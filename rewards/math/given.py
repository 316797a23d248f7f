"""Numbers that a sentence only mentions: "The 16 glasses cost $64 in 2 shops" claims $64.

A number is given where it stands in a sentence, not by what it is: counted after a determiner ("the
16 glasses"), held by a preposition ("in 2 shops"), in the subject of a verb ("16 glasses cost"), or
before the conclusion that is drawn from it ("10 birds and 4 flew away, so 6 are left").
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo.rewards.math import vocabulary
from grpo.rewards.math.clauses import Token, places_of_values, words_of

_FUNCTION = (
    vocabulary.TAIL_ENDS | vocabulary.SEPARATORS | vocabulary.COPULAS | vocabulary.MAGNITUDES
) - {"long", "old", "tall", "wide", "high", "deep"}


def asserted(found: Sequence[Token]) -> Sequence[Token]:
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
