r"""Words and signs that take an assertion back: guesses, negations, bounds, estimates, references.

"maybe 5", "not 5", "at least 5", "about 5" and "part 3" hold a number and claim none. A grader that
pays them pays for not knowing. Each list is of a kind, with some words of other languages, and each
is looked up word by word: no pattern here backtracks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from grpo.rewards.math import vocabulary

AFTER = re.compile(
    r"\b(?:or|and) (?:so|more|less|fewer|greater|higher|lower|larger|smaller|above|below|over|"
    r"under|up|beyond|something|thereabouts|similar|another|other|others|not|maybe|else)\b"
    r"|\b(?:ou|oder|o) (?:plus|moins|mehr|weniger|más|menos)\b|\band a (?:half|third|quarter)\b"
    r"|\bat (?:least|most)\b|\bgive or take\b|\b(?:ish|tops|plus|minus|onwards?|upwards?)$"
    r"|\bmore or less\b|\bi (?:think|believe|suppose|reckon|feel)$"
    r"|\btoo (?:large|small|many|much|few|little|big|high|low|long|short)\b"
)
_PHRASES = re.compile(
    r"\b(?:is unknown|are unknown|no idea|not sure|not certain|do(?:es)? ?n[o']t know|can ?not|"
    r"can't|could(?: not|n't)|"
    r"(?:a|one|another) possible (?:answer|value|solution)|it seems|seems? to be|appears? to be|"
    r"ruled out|for example|all but|"
    r"in the range|ranges? from|n/a|multiple answers|any of|one of|some of|anything|"
    r"(?:may|might|could|can)(?: also| well)? (?:be|equal)|at least|at most|say,|"
    r"(?:tal vez|pu[eé]de ser|je ne sais pas|no s[eé]|wei(?:ß|ss) nicht|keine ahnung|or maybe))"
)
_FLOATING = re.compile(r"\b(?:could|may|might|can)(?: also| well)? (?:be|equal)\b")
_HAN_INNOCENT = re.compile(
    "不等式|除以|整除|不同|不变|不变量|不定积分|不动点|不含|不重复|互不|到达|得到|未知数|非负|可能的?值"
)
_HAN = re.compile(
    "不|没|未|除了|除去|除外|以外|非|或|还是|至少|至多|最多|最少|大于|小于|多于|少于|超过|不足|低于|高于|可能|也许|大概|"
    "大约|约为|约|左右|以上|以下|之间|猜|到|至|なら|かも|たぶん|およそ|ではない|じゃない|または|"
    "いいえ|わから|未満|아니|아마|또는|이상|이하|대략|약|쯤|모르"
)
_HAN_ABOUT = ("近", "约", "超", "逾", "几乎", "接近", "差不多")


def denies(word: str) -> bool:
    """Whether a word, in lower case, is a negation."""
    return word in vocabulary.NEGATION or word.endswith(("n't", "n\u2019t"))


def doubts(words: Sequence[str], value_follows: bool) -> bool:
    """Whether words beside a value, in lower case, disown it, wherever they stand.

    `value_follows`: these words come before the copula, where "could be" speaks of things.
    """
    text = " ".join(words)
    if value_follows:
        text = _FLOATING.sub("", text).replace("at least", "")
    if vocabulary.DOUBT.intersection(words) or _PHRASES.search(text):
        return True
    return any(not word.isascii() and _HAN.search(_HAN_INNOCENT.sub("", word)) for word in words)


def denied_subject(words: Sequence[str]) -> bool:
    """Whether a negation before the copula is about the claim itself."""
    for index, word in enumerate(words):
        if denies(word):
            if vocabulary.DISOWNED.intersection(words):
                return True
            return not vocabulary.RELATIVE.intersection(words[:index])
    return bool(vocabulary.FALSE.intersection(words))


def bounded(before: list[str]) -> bool:
    """Whether the words right before a value make a bound, a negation or a name of it."""
    if (vocabulary.BOUND | vocabulary.OPERATIONS).intersection(before) or any(map(denies, before)):
        return True
    extreme = vocabulary.EXTREMES.intersection(before[-2 if before[-1:] == ["of"] else -1 :])
    if extreme and not {"has", "attains", "reaches", "achieves"}.intersection(before):
        return True  # "a maximum of 5 people"; "has a maximum of 5" states it
    if before and before[-1].endswith(_HAN_ABOUT) and not before[-1].endswith(("最近", "附近")):
        return True
    return before[-2:] == ["up", "to"] or (bool(before) and before[-1] in vocabulary.LABELS)


def fragment(before: Sequence[str]) -> bool:
    """Whether words right before a value, no copula among them, do not claim it: "hardly 5".

    A verb claims it ("Lily found 16"), but not of a part ("the divisors of 5").
    """
    if vocabulary.OPENERS.issuperset(before):
        return not {"minus", "negative", "plus"}.isdisjoint(before[:-1])  # "the negative of 5"
    if not (vocabulary.FALSE | vocabulary.REJECTING).isdisjoint(before):
        return True
    return not any(map(vocabulary.verbal, before[:-2] if before[-1] == "of" else before))


def trailing(after: Sequence[str]) -> bool:
    """Whether the words right after a value take it back: "or so", "or more", "at least"."""
    if vocabulary.TAKEN_BACK.intersection(after) and "the" not in after:
        return True
    if after and after[0] in vocabulary.OPERATED | vocabulary.PREDICATES:
        return True
    if vocabulary.FALSE.intersection(after) or any(map(denies, after)):
        return True
    return AFTER.search(" ".join(after)) is not None


def predicated(after: Sequence[str]) -> bool:
    """Whether words right after a value are not its noun: "5 is a candidate", "5 times some".

    "5 is the answer", "5 is correct" and "5 are left" claim it.
    """
    first, rest = (after[0], after[1:]) if after else ("", after)
    if first in ("is", "was"):
        return not vocabulary.SUBJECTS.intersection(rest)
    if first == "times":
        return bool(_SOME.intersection(rest[:1]))
    return not first.isascii() and bool(_HAN_MAGNITUDE.match(first))


_SOME = frozenset(["some", "something", "the", "that", "this", "its", "another", "any", "what"])
_HAN_MAGNITUDE = re.compile(
    "倍|的|分之|万|萬|亿|億|千(?![米克瓦卡])|百(?!分)|余|餘|多(?!边|少)|几|幾|来[个人]"
)


def disowned(before: Sequence[str]) -> bool:
    """Whether the words right before a box take it back: "it is not", "maybe", "it could be"."""
    if not before:
        return False
    last = before[-1]
    if last in ("be", "equal") and {*vocabulary.MODALS, "not", "cannot"}.intersection(
        before[-2:-1]
    ):
        return True
    return denies(last) or last == "else" or (last in vocabulary.DOUBT and last != "if")


def doubtful(text: str) -> bool:
    """Whether a passage of work, beside its conclusion, says that nobody knows."""
    words = text.lower().replace("\u2019", "'").split()
    bare = [word.strip(".,;:!?()*\"'") for word in words]
    if vocabulary.UNSURE.intersection(bare):
        return True
    return bool(_UNKNOWING.search(" ".join(bare)))


_UNKNOWING = re.compile(
    r"\b(?:no idea|not (?:sure|certain)|do(?:es)? not know|don't know|can ?not (?:solve|answer|be)|"
    r"can't (?:solve|answer)|unable to)\b"
)
