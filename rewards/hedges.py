r"""Words and signs that take an assertion back: guesses, negations, bounds, estimates, references.

"maybe 5", "not 5", "at least 5", "about 5" and "part 3" hold a number and claim none. A grader that
pays them pays for not knowing. Each list is of a kind, with some words of other languages, and each
is looked up word by word: no pattern here backtracks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Wherever they stand, nobody vouches for the value.
DOUBT = _words(
    "maybe perhaps possibly probably presumably supposedly guess guesses guessing guessed unsure "
    "uncertain unclear doubt doubtful dunno idk whether unless otherwise depends depending except "
    "excluding unable unsolvable unanswerable anyone's random randomly speculate hypothetically "
    "insufficient indeterminate undetermined possibility suppose supposing assume assuming sorry "
    "arguably hopefully allegedly conceivably hmm tentative tentatively if n/a na "
    "peut-être pourrait devine vielleicht könnte vermutlich wahrscheinlich quizás quizá acaso "
    "podría probablemente peut-etre quizas podria forse talvez peutêtre возможно может наверное"
)
NEGATION = _words(
    "not no never neither nor cannot none nothing without ain't non pas ne nicht kein keine keinen "
    "nie não nunca tampoco niemals jamais не нет"
)
# Before the value, or between the copula and the value.
BOUND = _words(
    "least most than over under above below exceeding exceeds exceed beyond between within "
    "around about approximately roughly nearly almost circa ca approx approximate near close "
    "estimate estimated estimates estimating from outside inside upwards barely slightly "
    "nearest multiple multiples factor divisible "
    "either-or environ moins plus entre presque supérieur inférieur ungefähr etwa mindestens "
    "höchstens zwischen weniger mehr rund knapp über unter aproximadamente alrededor menos más "
    "mas mayor menor unos casi cerca almeno meno più oltre около примерно более менее больше "
    "меньше hasta jusqu'à bis maximal minimal"
)
# The value is only what something is done to: "the square of 5", "5 squared".
_OPERATIONS = _words(
    "square cube root twice half double triple thrice third quarter reciprocal inverse factorial "
    "logarithm log power sum product difference quotient plus times"
)
_OPERATED = _words("squared cubed factorial divided doubled tripled halved")
MODALS = _words("may might could can")
# After the value.
AFTERWARDS = _words("ish or so-ish tops minimum maximum onwards upwards plus environ etwa ungefähr")
AFTER = re.compile(
    r"\b(?:or|and) (?:so|more|less|fewer|greater|higher|lower|larger|smaller|above|below|over|under|"
    r"up|beyond|something|thereabouts|similar|another|other|others|not|maybe|else)\b"
    r"|\b(?:ou|oder|o) (?:plus|moins|mehr|weniger|más|menos)\b|\band a (?:half|third|quarter)\b"
    r"|\bat (?:least|most)\b|\bgive or take\b|\b(?:ish|tops|plus|minus|onwards?|upwards?)$"
    r"|\bmore or less\b"
)
# A number after one of these is a name.
LABELS = _words(
    "part parts equation equations eq eqn eqs step steps room floor page pages chapter option "
    "choice case question problem exercise example figure fig table line row column section "
    "theorem lemma corollary proposition method approach formula hint note ref reference appendix "
    "task item point scenario statement condition rule attempt try candidate guess version model "
    "type group team player bus track platform gate lane route level grade class unit module "
    "volume paragraph article clause subsection definition remark see factor error errors code suite apartment "
    "building house schritt teil étape partie paso parte gleichung équation ecuación"
)
# Between a relativizer and the copula a negation speaks of things, not of the claim: "the number
# of students who do not play is 12".
RELATIVE = _words("who which that of where whose with for in when to")
_DISOWNED = _words(
    "true think thinks believe say says said sure know knows correct right case possible certain "
    "claim claims convinced wrong false incorrect untrue mistaken unlikely impossible"
)
_FALSE = _words("wrong false incorrect untrue mistaken unlikely impossible")
_PHRASES = re.compile(
    r"\b(?:is unknown|are unknown|no idea|not sure|not certain|do(?:es)? ?n[o']t know|can ?not|can't|could(?: not|n't)|"
    r"(?:a|one|another) possible (?:answer|value|solution)|it seems|seems? to be|appears? to be|"
    r"in the range|ranges? from|n/a|multiple answers|any of|one of|some of|anything|"
    r"(?:may|might|could|can)(?: also| well)? (?:be|equal)|at least|at most|say,|"
    r"(?:tal vez|pu[eé]de ser|je ne sais pas|no s[eé]|wei(?:ß|ss) nicht|keine ahnung|or maybe))"
)
_FLOATING = re.compile(r"\b(?:could|may|might|can)(?: also| well)? (?:be|equal)\b")
_HAN_INNOCENT = re.compile(
    "不等式|不同|不变|不变量|不定积分|不动点|不含|不重复|互不|到达|得到|未知数|非负|可能的?值"
)
_HAN = re.compile(
    "不|没|未|非|或|还是|至少|至多|最多|最少|大于|小于|多于|少于|超过|不足|低于|高于|可能|也许|大概|"
    "大约|约为|约|左右|以上|以下|之间|猜|到|至|なら|かも|たぶん|およそ|ではない|じゃない|または|"
    "いいえ|わから|未満|아니|아마|또는|이상|이하|대략|약|쯤|모르"
)


def denies(word: str) -> bool:
    """Whether a word, in lower case, is a negation."""
    return word in NEGATION or word.endswith(("n't", "n\u2019t"))


def doubts(words: Sequence[str], value_follows: bool) -> bool:
    """Whether words beside a value, in lower case, disown it, wherever they stand.

    `value_follows`: these words come before the copula, where "could be" speaks of things.
    """
    text = " ".join(words)
    if any(word in DOUBT for word in words):
        return True
    found = (
        _PHRASES.search(_FLOATING.sub("", text).replace("at least", ""))
        if value_follows
        else (_PHRASES.search(text))
    )
    if found:
        return True
    return any(not word.isascii() and _HAN.search(_HAN_INNOCENT.sub("", word)) for word in words)


def denied_subject(words: Sequence[str]) -> bool:
    """Whether a negation before the copula is about the claim itself."""
    for index, word in enumerate(words):
        if denies(word):
            if _DISOWNED.intersection(words):
                return True
            return not RELATIVE.intersection(words[:index])
    return bool(_FALSE.intersection(words))


def bounded(before: list[str]) -> bool:
    """Whether the words right before a value make a bound, a negation or a name of it."""
    if any(word in BOUND or word in _OPERATIONS or denies(word) for word in before):
        return True
    return before[-2:] == ["up", "to"] or (bool(before) and before[-1] in LABELS)


def trailing(after: Sequence[str]) -> bool:
    """Whether the words right after a value take it back: "or so", "or more", "at least"."""
    text = " ".join(after)
    if after and after[0] in _OPERATED:
        return True
    return bool(AFTER.search(text)) or any(denies(word) or word in _FALSE for word in after)


def disowned(before: Sequence[str]) -> bool:
    """Whether the words right before a box take it back: "it is not", "maybe", "it could be"."""
    last = before[-1:] and before[-1]
    if not last:
        return False
    modal = len(before) > 1 and last in ("be", "equal") and before[-2] in (*MODALS, "not", "cannot")
    return modal or denies(last) or (last in DOUBT and last != "if")


def doubtful(text: str) -> bool:
    """Whether a passage of work, beside its conclusion, says that nobody knows."""
    words = text.lower().replace("\u2019", "'").split()
    bare = [word.strip(".,;:!?()*\"'") for word in words]
    if _UNSURE.intersection(bare):
        return True
    return bool(_UNKNOWING.search(" ".join(bare)))


# Of work only these count: it may suppose, except and ask "if" without doubting its end.
_UNSURE = _words(
    "maybe perhaps possibly probably guess guessing unsure uncertain dunno idk sorry vielleicht "
    "quizás talvez forse peut-être"
)
_UNKNOWING = re.compile(
    r"\b(?:no idea|not (?:sure|certain)|do(?:es)? not know|don't know|can ?not (?:solve|answer|be)|"
    r"can't (?:solve|answer)|unable to)\b"
)
