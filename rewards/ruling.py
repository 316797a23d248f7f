r"""What an answer's claim says about a gold: same, different, or two formulas for algebra.

A gold of words, or of words and numbers ("May 5, 2020", "12 or more", "2 red, 3 blue"), is compared
whole. A gold of one value or list is compared with what the answer claims. What claims nothing is
never handed to algebra, which would find a number in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from grpo.rewards import hedges, words
from grpo.rewards.clauses import plain, relation, tokens
from grpo.rewards.exact import clean, number
from grpo.rewards.latex import normalize, structure
from grpo.rewards.prose import SEPARATORS, Claim, claim

MAX_SENTENCE = 400  # characters of an answer in words
Compare = Callable[[str, str], bool | None]

_MAGNITUDES = frozenset(
    "hundred thousand million billion trillion dozen score gross pair half percent pct quarter "
    "third tenth k bn mn".split()
)
_TAIL_ENDS = frozenset(
    "left remaining in of for on to altogether total each every at after when because that which "
    "who from with so since as has have is are was were more long old tall away ago apart wide high "
    "deep together by be would will if over overall exactly only".split()
)
# Signs of a formula that make it no value, unless the gold has them too. Of the first two kinds a
# gold is compared as text: algebra reads their last number.
_ARROW = re.compile(
    r"\\(?:to|(?:long)?(?:left)?rightarrow|mapsto)(?![A-Za-z])|[\u2192\u21a6\u2194]|[-=]>"
)
_DOTS = re.compile(r"\\[lcv]?d?dots[cbmio]?(?![A-Za-z])|\.\.+|\u2026|\u22ef")
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
    rf"[0-9]+{_GAP}[0-9]+ ?/ ?[0-9]+|(?<![0-9])[0-9]{{1,3}}(?:(?: |\\,|~)[0-9]{{3}})+(?![0-9])"
)
_OPEN_ENDED = re.compile(r"(?<![\^{(_])[-+<>~]$|(?:\\pm|\u00b1)$")
_APPROXIMATE = re.compile(
    r"\\(?:approx|sim|simeq|thickapprox|doteq)(?![A-Za-z])|[\u2248\u2243~\u223c]"
)
_COMPARES = re.compile(r"[<>\u2264\u2265]|\\(?:[lg](?:eq?|t|eqslant)|cup|in|infty)(?![A-Za-z])")
_SEVERAL = re.compile(r"\b(?:or|and)\b")
_WHOLE_RATIO = re.compile(r"[0-9.]+ to [0-9.]+")
_DISTANCE = ("?", "\uff1f", "<", ">", "\u2260", "\\ne", "\u2248", "\\approx")
_SUBJECT = re.compile(r"(?:the|this|that|its|their) [a-z]{3,20} ", re.IGNORECASE)
_REASON = re.compile(r",? (?:because|since|as) ")
_FIRST = re.compile(r"(?<![A-Za-z_^{\\])[0-9]")
_LEAST = re.compile(
    r"\b(?:at least|no (?:less|fewer) than|not less than) ([0-9][0-9.,]*)", re.IGNORECASE
)
_MOST = re.compile(r"\b(?:at most|no more than|not more than|up to) ([0-9][0-9.,]*)", re.IGNORECASE)
_OR_MORE = re.compile(r"\bor (?:greater|above|higher|larger|over|up)\b", re.IGNORECASE)
_OR_LESS = re.compile(r"\bor (?:fewer|below|lower|smaller|under)\b", re.IGNORECASE)
_UNITED = re.compile(r"[0-9})] ?(?:\\\s|~)*[A-Za-z\u00b0%][A-Za-z./^0-9 ]*$")  # "5 m"
_BOUNDS = re.compile(
    r"[<>\u2264\u2265\u00b1]|\\(?:pm|mp)(?![A-Za-z])|\\(?:[lg](?:eq?|t|eqslant))(?![A-Za-z])"
)
_COPULA = re.compile(r"\b(?:is|are|was|were|it|she|he|they)\b|[:\uff1a]|是|为", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ruling:
    """A verdict, or the pair of formulas that algebra has to compare. `why`: of no claim at all."""

    same: bool = False
    pair: tuple[str, str] | None = None
    why: str = ""


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
        return _formula(mine.text, Claim(kind="formula", text=gold), compare)
    whole = wanted.kind in ("words", "mixed") and mine.kind not in ("nothing", "formula")
    if any(sign in answer and sign not in gold for sign in _DISTANCE):
        return Ruling(why="signs that take it back")
    if (whole or _WHOLE_RATIO.fullmatch(gold)) and compare(answer, gold) is True:
        return Ruling(same=True)
    return Ruling(same=any(_same_whole(text, gold, compare) for text in _predicates(answer)))


def _is_value(gold: Claim) -> bool:
    """Whether a gold is a formula, a list, or one quantity: no words stand before it."""
    if gold.kind == "formula":
        return True
    if gold.kind != "values" or gold.about:
        return False
    if gold.headed:
        return "answer" in [t.text for t in tokens(plain(gold.text)) if t.kind == "word"]
    return not any(unit and unit[0] in SEPARATORS for _, unit in gold.values)


def _letters(text: str) -> str:
    """A bare run of letters, or ""."""
    bare = text.strip(" $.")
    return bare if bare.isalpha() else ""


def _against_value(mine: Claim, gold: Claim, compare: Compare) -> Ruling:
    """An answer against a gold that is a formula, a list of values or a quantity."""
    if mine.kind == "formula":
        if _SEVERAL.search(mine.text) and _letter(gold.text):
            return Ruling(why="several choices")
        return _formula(mine.text, gold, compare)
    if _chooses(mine, gold, compare):
        return Ruling(same=True)
    if mine.kind == "nothing":
        return Ruling(why=mine.why)
    if mine.kind == "words":
        return _in_words(mine, gold, compare)
    if not mine.headed and not mine.about and compare(mine.text, gold.text) is True:
        return Ruling(same=True)  # a quantity: 3 hours 20 minutes
    if mine.about and not _inexact(gold.text):
        return Ruling(why="only about")
    distinct: list[tuple[str, Sequence[str]]] = []
    if len(mine.values) == 2 and mine.values[0][1] == ("to",) and ":" in gold.text:
        return Ruling(same=compare(":".join(v for v, _ in mine.values), gold.text) is True)
    for value, words_after in mine.values:
        unit = _noun(words_after)
        text = " ".join((value, *unit))
        if not any(compare(text, " ".join((v, *u))) or compare(value, v) for v, u in distinct):
            distinct.append((value, unit))
    if len(distinct) == 1:
        return _one(*distinct[0], gold, compare)
    if mine.kind == "mixed":
        return Ruling(why="several values")
    return _formula(", ".join(" ".join((v, *u)) for v, u in distinct), gold, compare)


def _letter(gold: str) -> str:
    """The letter of a gold that is a choice, or ""."""
    letter = normalize(gold).strip("().")
    return letter if len(letter) == 1 and letter.isupper() else ""


def _chooses(mine: Claim, gold: Claim, compare: Compare) -> bool:
    """Whether the gold is a choice's letter and the answer names it: "option B", "(B) 12 cm"."""
    if not _letter(gold.text):
        return False
    said = [token.text for token in tokens(plain(mine.text)) if token.kind == "word"]
    if hedges.doubts(said, False) or any(hedges.denies(word) or word == "or" for word in said):
        return False
    return compare(plain(mine.text).strip(), gold.text) is True


def _in_words(mine: Claim, gold: Claim, compare: Compare) -> Ruling:
    """An answer without a value: a number word ("five apples"), a sign's name, or no claim."""
    value = words.number_of(mine.said[:1])
    several = any(word in SEPARATORS or words.number_of([word]) for word in mine.said[1:])
    if value is not None and not several and not hedges.trailing(mine.said[1:]):
        return _one(str(value), mine.said[1:], gold, compare)
    named = words.phrase(mine.said).replace(" ", "") == normalize(gold.text).replace(" ", "")
    return Ruling(same=named or compare(mine.text, gold.text) is True)


def _one(value: str, unit: Sequence[str], gold: Claim, compare: Compare) -> Ruling:
    """One value and the words after it against the gold: its unit or noun, then the rest."""
    unit = _noun(unit)
    if any(words.stem(word) in _MAGNITUDES for word in unit[:1]):
        text = f"{value} {' '.join(unit)}"
        return Ruling(same=any(compare(t, gold.text) is True for t in (text, f"{value} {unit[0]}")))
    texts = [f"{value} {' '.join(unit[:count])}" for count in range(min(len(unit), 4), 0, -1)]
    verdicts = [compare(text, gold.text) for text in texts]
    if True in verdicts:
        return Ruling(same=True)
    theirs = gold.values[0] if len(gold.values) == 1 else None
    if theirs is None or not theirs[1]:
        if False in verdicts and _UNITED.search(gold.text):
            return Ruling()
        return _formula(value, gold, compare)
    if unit and not _same_unit(unit, theirs[1], compare):
        return Ruling()
    return _formula(value, Claim(kind="formula", text=theirs[0]) if unit else gold, compare)


def _noun(unit: Sequence[str]) -> Sequence[str]:
    """The words after a value that may be its unit or noun: "marbles" of "marbles left"."""
    end = next((i for i, word in enumerate(unit) if word in _TAIL_ENDS), len(unit))
    return unit[:end]


def _same_unit(unit: Sequence[str], gold: Sequence[str], compare: Compare) -> bool:
    """Whether words after a value name the gold's unit: "red marbles left" and "marbles"."""
    wanted = " ".join(gold)
    if any(
        compare(f"1 {' '.join(unit[:n])}", f"1 {wanted}") for n in range(1, min(len(unit), 4) + 1)
    ):
        return True
    return words.stem(gold[-1]) in [words.stem(word) for word in unit] and len(gold[-1]) > 2


def _formula(text: str, gold: Claim, compare: Compare) -> Ruling:
    """A formula against the gold. It claims nothing where its signs take it back."""
    target = gold.text
    if "\\begin" not in text:
        text = text.replace("\\\\", ", ")
    if text.lstrip(" $").startswith("~") and "\\" not in text and not _inexact(target):
        return Ruling(why="only about")
    text = text.lstrip(" $").removeprefix("=") if text.lstrip(" $").startswith("=") else text
    squeezed, wanted = _squeezed(text), _squeezed(target)
    if squeezed == wanted:
        return Ruling(same=True)
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
    if same is not None:
        return Ruling(same=same)
    if _lists_for_one(text, target, compare):
        return Ruling(same=False)
    return Ruling(pair=(text, target))


def _squeezed(text: str) -> str:
    """A formula without spacing, and with one name for each kind of dots and arrows."""
    return re.sub(r"\s", "", _ARROW.sub(r"\\to ", _DOTS.sub("\u2026", normalize(text))))


def _inexact(gold: str) -> bool:
    """Whether a gold is itself an approximation: a decimal, or one that says so."""
    return re.search(r"[0-9]\.[0-9]", gold) is not None or _APPROXIMATE.search(gold) is not None


def _approximated(text: str, gold: str) -> tuple[str, str, str]:
    r"""(answer, gold, why nothing is claimed) without signs of approximation.

    "\frac13 \approx 0.333" claims its first side where the gold is exact, its last where the gold
    is a decimal. "\approx 5" claims nothing where the gold is 5.
    """
    inexact = _inexact(gold)
    parts = [part.strip() for part in _APPROXIMATE.split(gold) if part.strip()]
    gold = parts[-1] if len(parts) > 1 or relation(gold) else gold
    if "~" in text and ("\\" in text or not text.lstrip().startswith("~")):
        text = text.replace("~", " ")  # LaTeX's space
    if not _APPROXIMATE.search(text):
        return text, gold, ""
    parts = [part.strip() for part in _APPROXIMATE.split(text)]
    if not inexact:
        if re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?", parts[0].lstrip(" $")) and parts[-1]:
            return parts[-1], gold, ""
        return parts[0], gold, "" if parts[0].strip(" $") else "only about"
    return parts[-1], gold, "" if parts[-1] else "open ended"


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


def _predicates(answer: str) -> list[str]:
    """An answer, and what it says after its copula: "the day is Monday", "Monday"."""
    text = plain(answer)
    found = [text]
    if len(text) > MAX_SENTENCE:
        return found
    for mark in _COPULA.finditer(text):
        before = [t.text for t in tokens(text[: mark.start()]) if t.kind == "word"]
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
    """A text with one name for each kind of bound: "at least 12" is "12 or more"."""
    text = _LEAST.sub(r"\1 or more", text)
    return _MOST.sub(r"\1 or less", _OR_MORE.sub("or more", _OR_LESS.sub("or less", text)))


def _same_whole(answer: str, gold: str, compare: Compare) -> bool:
    """Whether two answers with words are the same words and numbers."""
    mine, theirs = tokens(_bounds(answer)), tokens(_bounds(plain(gold)))
    said, wanted = ([t.text for t in both if t.kind == "word"] for both in (mine, theirs))
    if len(said) == len(mine) and len(wanted) == len(theirs) and words.same_words(said, wanted):
        return True
    return words.same_items(mine, theirs, compare)
