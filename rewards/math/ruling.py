r"""What an answer's claim says about a gold: same, different, or two formulas for algebra.

A gold of words, or of words and numbers ("May 5, 2020", "12 or more", "2 red, 3 blue"), is compared
whole. A gold of one value or list is compared with what the answer claims. What claims nothing is
never handed to algebra, which would find a number in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpo.rewards.math import hedges, units, vocabulary, words
from grpo.rewards.math.clauses import tokens, words_of
from grpo.rewards.math.prose import Claim, claim
from grpo.rewards.math.signs import Compare, Ruling, formula, inexact
from grpo.rewards.math.spelling import normalize, plain

# A gold with one of these after its number is more than a number and a noun: "30 degrees north of
# east", "5 less than x".
_PLACED = frozenset({"of", "than", "from", "to", "below", "above", "before", "after"})
_EITHER = re.compile(r"\)[\s$}]*(?:\\text ?\{ ?)?or\b")  # "(3,4) or (4,3)"
_ORDINAL = re.compile(r"[0-9]+(?:st|nd|rd|th)")
_DOUBLE = re.compile(r"!\s*!")
_CHOSEN = re.compile(r"\$?([A-J])\. +\\?\$?-?[0-9][0-9.,/]*\$?")  # "C. 42"
_MOD = re.compile(r"([0-9]{1,9}) *(?:\( *(?:\\?mod|\\bmod)|\\pmod *\{?) *([0-9]{1,9})")
_SEVERAL = re.compile(r"\b(?:or|and)\b")
_WHOLE_RATIO = re.compile(r"[0-9.]+ to [0-9.]+")
_DISTANCE = ("?", "\uff1f", "<", ">", "\u2260", "\\ne", "\u2248", "\\approx")
_UNITED = re.compile(r"[0-9})] ?(?:\\\s|~)*[A-Za-z\u00b0%][A-Za-z./^0-9 ]*$")  # "5 m"


def rule(answer: str, gold: str, compare: Compare) -> Ruling:
    """What the texts say about each other; `compare` is for formulas (True, False, unknown)."""
    wanted, mine = claim(gold), claim(answer)
    letters, gold_letters = _letters(answer), _letters(gold)
    if letters and gold_letters:
        if len(letters) == len(gold_letters) == 1:
            return Ruling(same=letters == gold_letters)
        commuted = words.commute(letters, gold_letters)
        if commuted is not None:
            return Ruling(same=commuted)
    if _is_value(wanted):
        return _against_value(mine, wanted, compare)
    if gold_letters and mine.kind == "formula" and words.commute(gold_letters, gold_letters):
        return formula(mine.text, gold, compare)
    several = wanted.kind == "values" and len(wanted.values) > 1
    whole = several or wanted.kind in ("words", "mixed")
    if any(sign in answer and sign not in gold for sign in _DISTANCE):
        return Ruling(why="signs that take it back")
    stated = whole and mine.kind not in ("nothing", "formula")
    if (stated or _WHOLE_RATIO.fullmatch(gold)) and compare(answer, gold) is True:
        return Ruling(same=True)
    return Ruling(same=any(_same_whole(text, gold, compare) for text in _predicates(answer)))


def _is_value(gold: Claim) -> bool:
    """Whether a gold is a formula, a list, or one quantity: no words stand before it."""
    if gold.kind == "formula":
        return True
    if gold.kind != "values" or gold.about:
        return False
    if gold.headed:
        return "answer" in words_of(tokens(plain(gold.text)))
    units = [unit for _, unit in gold.values]
    if len(units) > 1:
        return not any(units)  # "$3 and 20 cents" is one thing
    unit = units[0]
    return not unit or (unit[0] not in vocabulary.SEPARATORS and not _PLACED.intersection(unit))


def _letters(text: str) -> str:
    """A bare run of letters, or ""."""
    bare = text.strip(" $.")
    return bare if bare.isalpha() else ""


def _against_value(mine: Claim, gold: Claim, compare: Compare) -> Ruling:
    """An answer against a gold that is a formula, a list of values or a quantity."""
    stated = [value for value, _ in mine.values] or [mine.text]
    if any(map(_ORDINAL.fullmatch, stated)) and not _ORDINAL.search(gold.text):
        return Ruling(why="a place, not a number")
    if mine.kind == "formula":
        if _DOUBLE.search(mine.text) and "!!" not in gold.text:
            return Ruling(why="a double factorial, or a cry")
        if (chosen := _CHOSEN.fullmatch(mine.text)) and _letter(gold.text):
            return Ruling(same=chosen[1] == _letter(gold.text))
        residue = _MOD.search(mine.text)
        if residue and "mod" not in gold.text and int(residue[1]) >= int(residue[2]):
            return Ruling(why="not a residue")
        if _SEVERAL.search(mine.text) and _letter(gold.text):
            return Ruling(why="several choices")
        if _EITHER.search(mine.text) and gold.text.lstrip(" $").startswith("("):
            return Ruling(same=compare(mine.text, gold.text) is True and "or" in gold.text)
        return formula(mine.text, gold.text, compare)
    if _chooses(mine, gold, compare):
        return Ruling(same=True)
    if mine.kind == "nothing":
        return Ruling(why=mine.why)
    if mine.kind == "words":
        return _in_words(mine, gold, compare)
    if not mine.headed and not mine.about and compare(mine.text, gold.text) is True:
        return Ruling(same=True)  # a quantity: 3 hours 20 minutes
    if mine.about and not inexact(gold.text):
        return Ruling(why="only about")
    distinct: list[tuple[str, Sequence[str]]] = []
    if len(mine.values) == 2 and mine.values[0][1] == ("to",) and ":" in gold.text:
        return Ruling(same=compare(":".join(v for v, _ in mine.values), gold.text) is True)
    for value, words_after in mine.values:
        unit = _noun(words_after)
        text = " ".join((value, *unit))
        if not any(
            compare(text, " ".join((v, *u))) or (not (u and unit) and compare(value, v))
            for v, u in distinct
        ):
            distinct.append((value, unit))
    if len(distinct) == 1:
        return _one(*mine.values[0], gold, compare)
    if mine.kind == "mixed":
        return Ruling(why="several values")
    return formula(", ".join(" ".join((v, *u)) for v, u in distinct), gold.text, compare)


def _letter(gold: str) -> str:
    """The letter of a gold that is a choice, or ""."""
    letter = normalize(gold).strip("().")
    return letter if len(letter) == 1 and letter.isupper() else ""


def _chooses(mine: Claim, gold: Claim, compare: Compare) -> bool:
    """Whether the gold is a choice's letter and the answer names it: "option B", "(B) 12 cm"."""
    if not _letter(gold.text):
        return False
    said = words_of(tokens(plain(mine.text)))
    if hedges.doubts(said, False) or any(hedges.denies(word) or word == "or" for word in said):
        return False
    return compare(plain(mine.text).strip(), gold.text) is True


def _in_words(mine: Claim, gold: Claim, compare: Compare) -> Ruling:
    """An answer without a value: a number word ("five apples"), a sign's name, or no claim."""
    if part := words.fraction_of(mine.said):
        return formula(part, gold.text, compare)
    value = words.number_of(mine.said[:1])
    several = any(
        word in vocabulary.SEPARATORS or words.number_of([word]) for word in mine.said[1:]
    )
    if value is not None and not several and not hedges.trailing(mine.said[1:]):
        return _one(str(value), mine.said[1:], gold, compare)
    named = words.phrase(mine.said).replace(" ", "") == normalize(gold.text).replace(" ", "")
    return Ruling(same=named or compare(mine.text, gold.text) is True)


def _one(value: str, words_after: Sequence[str], gold: Claim, compare: Compare) -> Ruling:
    """One value and the words after it against the gold: its unit or noun, then the rest."""
    unit = _noun(words_after)
    if any(words.stem(word) in vocabulary.MAGNITUDES for word in unit[:1]):
        text = f"{value} {' '.join(unit)}"
        return Ruling(same=any(compare(t, gold.text) is True for t in (text, f"{value} {unit[0]}")))
    texts = [f"{value} {' '.join(unit[:count])}" for count in range(min(len(unit), 4), 0, -1)]
    verdicts = [compare(text, gold.text) for text in texts]
    if True in verdicts:
        return Ruling(same=True)
    counted = units.split(normalize(gold.text))[1]
    if unit and counted and counted.known:  # algebra compares 2 pi cm and 2 pi m, units and all
        names = [text.removeprefix(f"{value} ") for text in texts]
        named = [name for name in names if (found := units.unit(name, True)) and found.known]
        return formula(f"{value} {named[0]}", gold.text, compare) if named else Ruling()
    theirs = gold.values[0] if len(gold.values) == 1 else None
    if theirs is None or not theirs[1]:
        if False in verdicts and _UNITED.search(gold.text):
            return Ruling()
        return formula(value, gold.text, compare)
    if unit and not _same_unit(words_after, theirs[1], compare):
        return Ruling()
    return formula(value, theirs[0] if unit else gold.text, compare)


def _noun(unit: Sequence[str]) -> Sequence[str]:
    """The words after a value that may be its unit or noun: "marbles" of "marbles left"."""
    end = next((i for i, word in enumerate(unit) if word in vocabulary.TAIL_ENDS), len(unit))
    return unit[:end]


def _same_unit(words_after: Sequence[str], gold: Sequence[str], compare: Compare) -> bool:
    """Whether words after a value name the gold's unit: "red marbles left" and "marbles".

    Several words of the gold stand there in its order: north of east is not east of north.
    """
    unit = _noun(words_after)
    texts = [f"1 {' '.join(unit[:count])}" for count in range(1, min(len(unit), 4) + 1)]
    if any(compare(text, f"1 {' '.join(gold)}") for text in texts):
        return True
    left = iter([words.stem(word) for word in words_after])
    return len(gold[-1]) > 2 and all(words.stem(word) in left for word in gold)


_MAX_SENTENCE = 400  # characters of an answer in words
_SUBJECT = re.compile(r"(?:the|this|that|its|their) [a-z]{3,20} ", re.IGNORECASE)
_REASON = re.compile(r",? (?:because|since|as) ")
_LISTED = re.compile(r"[,;]|\b(?:and|or)\b")
_FIRST = re.compile(r"(?<![A-Za-z_^{\\])[0-9]")
_LEAST = re.compile(r"(?i)\b(?:at least|not? less than|no fewer than) +([0-9][0-9.,]*)")
_MOST = re.compile(r"(?i)\b(?:at most|not? more than|up to) +([0-9][0-9.,]*)")
_DEGREES = re.compile(r"\^ ?\{? ?\\circ ?\}?|\u00b0")
_OR_MORE = re.compile(r"\bor (?:greater|above|higher|larger|over|up)\b", re.IGNORECASE)
_OR_LESS = re.compile(r"\bor (?:fewer|below|lower|smaller|under)\b", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are|was|were|it|she|he|they)\b|[:\uff1a]|是|为", re.IGNORECASE)


def _predicates(answer: str) -> list[str]:
    """An answer, and what it says after its copula: "the day is Monday", "Monday"."""
    text = plain(answer)
    found = [text]
    if len(text) > _MAX_SENTENCE:
        return found
    first = None
    for mark in _COPULA.finditer(text):
        first = mark.end() if first is None else first
        if _LISTED.search(text, first, mark.start()):
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


def _same_whole(answer: str, gold: str, compare: Compare) -> bool:
    """Whether two answers with words are the same words and numbers."""
    mine, theirs = tokens(_bounds(answer)), tokens(_bounds(plain(gold)))
    said, wanted = (words_of(both) for both in (mine, theirs))
    if len(said) == len(mine) and len(wanted) == len(theirs) and words.same_words(said, wanted):
        return True
    return words.same_items(mine, theirs, compare)
