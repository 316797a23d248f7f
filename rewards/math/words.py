r"""Answers in words: which of them are the same words.

Case, articles, a plural's s, spacing and punctuation never matter; nothing else is forgiven: May is
not Amy. What holds numbers and words ("2 red, 3 blue", "May 5, 2020") is compared item by item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from grpo.rewards.math import vocabulary
from grpo.rewards.math.clauses import Token, words_of

_NUMBERS = {name: value for value, name in enumerate(vocabulary.ONES)} | {
    name: 10 * tens for tens, name in enumerate(vocabulary.TENS, start=3)
}
# Phrases, each after what it is compared as.
_SAME = {
    "does not exist": "doesn't exist, dne, no limit",
    "yes": "yes it is",
    "no solution": "no solutions exist, has no solution, there is no solution, "
    "there are no solution",
    "infinitely many solution": "infinitely many, infinite solution, infinite number of solution",
    "\\emptyset": "empty set",
    "\\infty": "infinity",
}
_MONTHS = {month[:3]: month for month in vocabulary.MONTHS} | {"sept": "september"}


def stem(word: str) -> str:
    """A word in lower case without a plural's s."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]
    return word


def number_of(words: Sequence[str]) -> int | None:
    """The value of a number written as one word (twenty-one too), None for anything else."""
    if len(words) != 1:
        return None
    tens, _, ones = words[0].partition("-")
    if tens not in _NUMBERS or (ones and ones not in _NUMBERS):
        return None
    return _NUMBERS[tens] + (_NUMBERS[ones] if ones else 0)


_FRACTION = re.compile(r"(?:([a-z]+(?: [a-z]+)?) and )?([a-z]+) ([a-z]+)")
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4} | {
    name: part
    for part, name in enumerate(["fifth", "sixth", "seventh", "eighth", "ninth", "tenth"], start=5)
}


def fraction_of(words: Sequence[str]) -> str:
    """A fraction in words, "three quarters" or "three and a half", as p/q; "" for other words."""
    found = _FRACTION.fullmatch(" ".join(words).replace("-", " "))
    if not found:
        return ""
    whole, top, part = found.groups()
    bottom = _PARTS.get(stem(part))
    above = 1 if top == "a" else _NUMBERS.get(top)
    ones = number_of([whole.replace(" ", "-")]) if whole else 0
    return f"{ones * bottom + above}/{bottom}" if bottom and above and ones is not None else ""


def phrase(words: Sequence[str]) -> str:
    """Words as they are compared: stems, without articles, synonyms under one name."""
    text = _stemmed(words)
    return _SYNONYMS.get(text, text)


def _stemmed(words: Sequence[str]) -> str:
    kept = [stem(word.rstrip(".")) for word in words if word not in ("a", "an", "the")]
    return " ".join(kept).replace("-", " ").replace("can not", "cannot")


_SYNONYMS = {
    _stemmed(words.split()): name if "\\" in name else _stemmed(name.split())
    for name, phrases in _SAME.items()
    for words in phrases.split(", ")
}


def same_words(answer: Sequence[str], gold: Sequence[str]) -> bool:
    """Whether two answers of words alone say the same in the same order."""
    return phrase(answer) == phrase(gold) and bool(phrase(gold))


def commute(answer: str, gold: str) -> bool | None:
    """Whether two bare runs of letters are one product of variables: ab is ba, May is not Amy.

    None if they cannot be products: up to three small letters that spell no word (without vowels,
    or of the first four letters).
    """
    for text in (answer, gold):
        small = text.isascii() and text.isalpha() and text.islower() and 1 < len(text) <= 3
        if not small or (set(text) & set("aeiou") and not set(text) <= set("abcd")):
            return None
    return sorted(answer) == sorted(gold)


def items(tokens: Sequence[Token]) -> list[list[Token]]:
    """The items of an answer of words and numbers: cut at separators, and before a new number."""
    found: list[list[Token]] = [[]]
    for token in tokens:
        separates = token.kind in ("comma", "line") or token.text in vocabulary.JOINERS
        full = token.kind == "value" and any(t.kind == "value" for t in found[-1])
        if separates or full:
            found.append([])
        if not separates and not (token.kind == "word" and token.text in ("a", "an", "the")):
            found[-1].append(token)
    return [item for item in found if item]


def same_items(
    answer: Sequence[Token], gold: Sequence[Token], same: Callable[[str, str], bool | None]
) -> bool:
    """Whether two answers of words and numbers have the same items, in any order.

    `same` compares two numbers or quantities. A number and one word may change places ("5% gain",
    "gain of 5%"); more words have an order ("north of east").
    """
    mine, theirs = items(answer), items(gold)
    if len(mine) != len(theirs) or len(mine) > 32:
        return False
    left = list(mine)
    for wanted in theirs:
        index = next((i for i, item in enumerate(left) if _same_item(item, wanted, same)), -1)
        if index < 0:
            return False
        left.pop(index)
    return True


def _same_item(
    mine: Sequence[Token], theirs: Sequence[Token], same: Callable[[str, str], bool | None]
) -> bool:
    values, wanted = _values(mine), _values(theirs)
    if len(values) != len(wanted):
        return False
    if not wanted:
        return same_words(words_of(mine), words_of(theirs))
    if values != wanted and not all(map(same, values, wanted)):
        return False
    kept, expected = _content(mine), _content(theirs)
    if kept == expected:
        return True
    unit, gold_unit = " ".join(words_of(mine)), " ".join(words_of(theirs))
    measured = mine[0].kind == theirs[0].kind == "value" and len(kept) == len(expected) == 1
    return measured and same(f"1 {unit}", f"1 {gold_unit}") is True and unit != "" != gold_unit


def _values(item: Sequence[Token]) -> list[str]:
    return [
        re.sub(r"(?<=[0-9])(?:st|nd|rd|th)$", "", token.text).replace("\\%", "%")
        for token in item
        if token.kind == "value"
    ]


def _content(item: Sequence[Token]) -> list[str]:
    found = [stem(word.rstrip(".")) for word in words_of(item) if word not in vocabulary.ARTICLES]
    return [_MONTHS.get(word, word) for word in found]
