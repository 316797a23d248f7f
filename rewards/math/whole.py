"""A gold of words, or of words and numbers, against what an answer or its predicate says.

"May 5, 2020", "12 or more" and "2 red, 3 blue" are more than any number in them.
"""

from __future__ import annotations

import re

from grpo.rewards.math import hedges, words
from grpo.rewards.math.clauses import tokens, words_of
from grpo.rewards.math.dress import plain
from grpo.rewards.math.prose import claim
from grpo.rewards.math.signs import Compare

MAX_SENTENCE = 400  # characters of an answer in words
_SUBJECT = re.compile(r"(?:the|this|that|its|their) [a-z]{3,20} ", re.IGNORECASE)
_REASON = re.compile(r",? (?:because|since|as) ")
_SEVERAL = re.compile(r"[,;]|\b(?:and|or)\b")
_FIRST = re.compile(r"(?<![A-Za-z_^{\\])[0-9]")
_LEAST = re.compile(r"(?i)\b(?:at least|not? less than|no fewer than) +([0-9][0-9.,]*)")
_MOST = re.compile(r"(?i)\b(?:at most|not? more than|up to) +([0-9][0-9.,]*)")
_DEGREES = re.compile(r"\^ ?\{? ?\\circ ?\}?|\u00b0")
_OR_MORE = re.compile(r"\bor (?:greater|above|higher|larger|over|up)\b", re.IGNORECASE)
_OR_LESS = re.compile(r"\bor (?:fewer|below|lower|smaller|under)\b", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are|was|were|it|she|he|they)\b|[:\uff1a]|是|为", re.IGNORECASE)


def predicates(answer: str) -> list[str]:
    """An answer, and what it says after its copula: "the day is Monday", "Monday"."""
    text = plain(answer)
    found = [text]
    if len(text) > MAX_SENTENCE:
        return found
    first = None
    for mark in _COPULA.finditer(text):
        first = mark.end() if first is None else first
        if _SEVERAL.search(text, first, mark.start()):
            break  # "it is Monday or it is Tuesday"
        before = words_of(tokens(text[: mark.start()]))
        if len(found) > 3 or hedges.doubts(before, True) or hedges.denied_subject(before):
            break
        found.append(text[mark.end() :])
    if subject := _SUBJECT.match(text):
        found.append(text[subject.end() :])  # "the limit does not exist"
    if reason := _REASON.search(text):
        found.append(text[: reason.start()])
    counted = _FIRST.search(text)
    if counted and not claim(text).why:
        found.append(text[counted.start() :])  # "it takes 3 hours 20 minutes"
    return found


def _bounds(text: str) -> str:
    """A text with one name for each bound and for degrees: "at least 12" is "12 or more"."""
    text = _DEGREES.sub(" degrees ", text)
    text = _LEAST.sub(r"\1 or more", text)
    return _MOST.sub(r"\1 or less", _OR_MORE.sub("or more", _OR_LESS.sub("or less", text)))


def same_whole(answer: str, gold: str, compare: Compare) -> bool:
    """Whether two answers with words are the same words and numbers."""
    mine, theirs = tokens(_bounds(answer)), tokens(_bounds(plain(gold)))
    said, wanted = (words_of(both) for both in (mine, theirs))
    if len(said) == len(mine) and len(wanted) == len(theirs) and words.same_words(said, wanted):
        return True
    return words.same_items(mine, theirs, compare)
