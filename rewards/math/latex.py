r"""What two LaTeX answers say about each other by their text alone: same, different, or unknown.

This comes before computer algebra for speed, and instead of it where algebra is known to be wrong:
it forgets units (5 km = 5 m), bases (101_2 = 101), repeated elements ({1,1,2} = {1,2}) and small
differences (0.0000004 = 0.0000001), multiplies the letters of a word (May = Amy), and does sums
that were the question (\int_0^5 1dx).
"""

from __future__ import annotations

import re
from fractions import Fraction

from grpo.rewards.math import units
from grpo.rewards.math.exact import number
from grpo.rewards.math.spelling import closing, is_integer, normalize, split

_MIXED = re.compile(r"(-?)([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}|(-?)([0-9]+) ([0-9]+)/([0-9]+)")
_SPACED = re.compile(r"-?[1-9][0-9]{0,2}(?: [0-9]{3})+")
PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")  # and not the head of \pmod or \pmatrix
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_BASE = re.compile(
    r"\(? ?([0-9][0-9A-Fa-f]*|[0-9A-Fa-f]{2,}) ?\)?(?: ?_ ?\{? ?(?:base )?| \(?base )"
    rf"([0-9]+|{'|'.join(_BASES)}) ?\}}?\)?"
)
_NAME = (
    r"(?:[A-Za-z](?:_\{?\w{1,20}\}?)?|\\(?!pi(?![a-z])|infty)[a-z]{1,12}"
    r"|\([A-Za-z](?: ?, ?[A-Za-z]){1,8}\)|[A-Za-z]\([A-Za-z0-9, ]{1,12}\))"
)
_ASSIGN = re.compile(rf"({_NAME}) ?(?:=|\\in(?![a-z])) ?(.+)")
_TURNED = re.compile(rf"([^=<>]+?) ?= ?({_NAME})")
_UNEVALUATED = re.compile(r"\\(?:i*int|sum|prod|lim|limsup|liminf)(?![A-Za-z])")
_SEPARATOR = re.compile(r",|;|(?<![A-Za-z\\])(?:and|or)(?![a-z])")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
_LONG_DECIMAL = re.compile(r"\.[0-9]{12}")
_CONDITION = re.compile(r"[<>|:]|\\(?:le|ge|ne|mid|in)(?![a-z])")
# Letters that stand side by side in products. Other runs of letters are words, or names of points.
_PRODUCTS = ("abcd", "xyzw", "mnk", "pqrst", "uvw", "ijk", "gh")
# A choice with or without what it says: "(B)", "B. 12 cm", "option B". Two choices are none.
_CHOICE = re.compile(
    r"(?:(?:the )?(?:correct )?(?:answer|option|choice) (?:is )?)?"
    r"(?:\( ?([A-J]) ?\)|([A-J])(?=$|[.):]))[.):]*(.*)",
    re.IGNORECASE,
)
_OTHER_CHOICE = re.compile(r"\([A-J]\)|(?<![A-Za-z])[A-J](?=[.):]|$)")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2}) ?(?:([ap])\.? ?m\.?)?", re.IGNORECASE)
_MODULUS = re.compile(r" ?\\pmod ?(?:\{[^{}]*\}|[0-9])| ?\( ?\\?mod [^()]*\)| \\?mod [0-9a-z]+$")
_RATIO = re.compile(r"(?<![0-9])([0-9]+) (?:to|:) ([0-9]+)")
_ARTICLE = re.compile(r"(?:an?|the) (?=[a-z]{3,}$)", re.IGNORECASE)
_CODED = re.compile(r"0(?:x[0-9A-Fa-f]{1,64}|b[01]{1,256})")
_AND = re.compile(r"(?<![A-Za-z\\])and(?![a-z])")
_OR = re.compile(r"(?<![A-Za-z\\])or(?![a-z])|\\lor(?![a-z])")
_RECURRING = re.compile(r"(-?)([0-9]{0,20})\.([0-9]{0,20})\\(?:overline|bar|dot)\{([0-9]{1,20})\}")
_SCIENTIFIC = re.compile(
    r"(-?[0-9]{0,30}\.?[0-9]{1,30})(?:[eE]| ?\\(?:times|cdot) ?10 ?\^ ?)\{?([-+]?[0-9]{1,3})\}?"
)


def quantity(text: str, near: bool = False) -> tuple[Fraction, units.Unit | None] | None:
    """(exact value, unit) of a normalized answer; None if it is not a number and a unit.

    `near` as in `units.split`.
    """
    value = _value(text)
    if value is not None and not text.startswith(("$", "-$")):
        return value, None
    body, unit, size = units.split(text, near)
    if body != text and (value := _value(body)) is not None:
        return value * size, unit
    return units.compound(text) if text[:1].isdigit() else None


def _value(text: str) -> Fraction | None:
    value = number(text)
    if value is None and _SPACED.fullmatch(text):
        return Fraction(int(text.replace(" ", "")))
    if value is None and text[:2] in ("0x", "0b") and _CODED.fullmatch(text):
        return Fraction(int(text, 0))
    if value is None and (match := _MIXED.fullmatch(text)):
        sign, whole, top, bottom = (part for part in match.groups() if part is not None)
        if max(len(whole), len(top), len(bottom)) < 50 and int(top) < int(bottom):
            value = int(whole) + Fraction(int(top), int(bottom))
            value = -value if sign else value
    if value is None and (match := _SCIENTIFIC.fullmatch(text)):
        value = Fraction(match[1]) * Fraction(10) ** int(match[2])
    if value is None and (match := _RECURRING.fullmatch(text)):
        sign, whole, fixed, period = match.groups()
        nines = Fraction(int(period), 10 ** len(period) - 1)
        value = (int(whole + fixed or "0") + nines) / 10 ** len(fixed)
        value = -value if sign else value
    return value


def split_top(text: str) -> list[str]:
    """The parts of a comma, `and` or `or` list, brackets respected."""
    return [part for part in split(text, _SEPARATOR) if part]


def structure(text: str) -> tuple[str, list[str]]:
    r"""(brackets, elements): ("\{\}", …) a set, ("(]", …) an interval or tuple, ("", …) a list."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return "\\{\\}", split_top(text[2:-2])
    if text and text[0] in "([" and closing(text) == len(text) - 1:
        parts = split_top(text[1:-1])
        if len(parts) > 1:
            return text[0] + text[-1], parts
    return "", split_top(text)


def assigned(text: str) -> tuple[str, str] | None:
    """(name, value) of "x = 5", "7 = x", "f(x) = 2x" or "(x, y) = (1, 2)"; None of a chain."""
    match = _ASSIGN.fullmatch(text)
    if match:
        return (match[1], match[2].strip()) if "=" not in match[2] else None
    match = _TURNED.fullmatch(text) if text.count("=") == 1 else None
    return (match[2], match[1].strip()) if match else None


def both_signs(text: str) -> str:
    r"""A list with both values of each element that holds one `\pm`: x = 1 \pm y is 1+y, 1-y."""
    kind, parts = structure(normalize(text))
    if kind not in ("", "\\{\\}"):
        return text
    values: list[str] = []
    for part in parts:
        if name := assigned(part):
            part = name[1]
        once = len(PLUS_MINUS.findall(part)) == 1
        values += [PLUS_MINUS.sub(sign, part) for sign in "+-"] if once else [part]
    return ", ".join(value.strip().removeprefix("+") for value in values)


def is_variable(text: str) -> bool:
    """Whether a text is the name of a value and nothing else: x, a_n, f(x)."""
    return re.fullmatch(_NAME, text) is not None


def is_word(text: str) -> bool:
    """Whether letters are a word or a name (May, ABC) and no product of variables (xy, abc)."""
    return text.isalpha() and len(text) > 1 and not any(set(text) <= set(p) for p in _PRODUCTS)


def compare(answer: str, gold: str, tolerance: float = 0.0) -> bool | None:
    """True: the same. False: different, whatever algebra says. None: algebra has to decide."""
    mine, theirs = normalize(answer), normalize(gold)
    if mine == theirs or (is_integer(mine) and is_integer(theirs)):
        return _compare(mine, theirs, tolerance, 0)
    mine, theirs = _ARTICLE.sub("", mine), _ARTICLE.sub("", theirs)
    if is_word(mine) and is_word(theirs):
        return mine.casefold() == theirs.casefold()
    mine, theirs = _RATIO.sub(r"\1:\2", mine), _RATIO.sub(r"\1:\2", theirs)
    time, gold_time = _CLOCK.fullmatch(mine), _CLOCK.fullmatch(theirs)
    if time and gold_time and (time[3] or gold_time[3]):
        halves = {(half or "").lower() for half in (time[3], gold_time[3])}
        same_half = len(halves) == 1 or "" in halves
        return (int(time[1]), time[2]) == (int(gold_time[1]), gold_time[2]) and same_half
    if (wanted := _chosen(theirs, alone=True)) and (chosen := _chosen(mine)):
        return chosen == wanted
    if _MODULUS.search(mine) and not _MODULUS.search(theirs):
        return _only_true(_compare(_MODULUS.sub("", mine).strip(), theirs, tolerance, 0))
    return _compare(mine, theirs, tolerance, 0)


def _chosen(text: str, alone: bool = False) -> str | None:
    """The letter of a multiple choice answer, with nothing beside it if `alone`."""
    match = _CHOICE.fullmatch(text)
    letter = match and (match[1] or match[2])
    if not match or not letter or not letter.isupper():
        return None
    return None if _OTHER_CHOICE.search(match[3]) or (alone and match[3].strip()) else letter


def _compare(answer: str, gold: str, tolerance: float, depth: int) -> bool | None:
    if answer == gold:
        return True
    if not answer or not gold or depth > 8:
        return None
    amount, target = quantity(answer), quantity(gold)
    if target and target[1] and not amount:
        amount = quantity(answer, near=True)
    if amount and amount[1] and not target:
        target = quantity(gold, near=True)
    if amount and target:
        # A decimal of twelve places is a fraction printed by a program, not an approximation.
        loose = tolerance if "." in gold else 1e-11 if _LONG_DECIMAL.search(answer) else 0.0
        return _same_quantity(*amount, *target, loose)
    base, gold_base = _in_base(answer), _in_base(gold)
    if base or gold_base:
        return base == gold_base
    if _UNEVALUATED.search(answer) and not _UNEVALUATED.search(gold):
        return False
    name, gold_name = assigned(answer), assigned(gold)
    if name and gold_name:
        if _called(name[0]) == _called(gold_name[0]):
            return _compare(name[1], gold_name[1], tolerance, depth + 1)
        letters = name[0].isalpha() and gold_name[0].isalpha()
        return False if letters and quantity(name[1]) and quantity(gold_name[1]) else None
    if gold_name and not target and "=" not in answer:
        return _only_true(_compare(answer, gold_name[1], tolerance, depth + 1))
    if name and "=" not in gold:
        return _only_true(_compare(name[1], gold, tolerance, depth + 1))
    return _compare_structures(answer, gold, tolerance, depth)


def _called(name: str) -> str:
    """A name without the variable that a function is written with: W of W(x) and W(n)."""
    return name[0] if len(name) == 4 and name[1] == "(" and name[2].islower() else name


def _in_base(text: str) -> tuple[str, int] | None:
    """(digits, base) of 101_2, (101)_{2} or 101 base two."""
    match = _BASE.fullmatch(text)
    if not match:
        return None
    base = int(match[2][:9]) if match[2].isdigit() else _BASES.index(match[2]) + 2
    return match[1].upper(), base


def _only_true(verdict: bool | None) -> bool | None:
    """A match decides; a mismatch of a rewritten form does not."""
    return True if verdict else None


def _in_order(parts: list[str]) -> list[str] | None:
    """The values of x = 2, y = 3 in the order of their names; None if they do not all have one."""
    named = [assigned(part) for part in parts]
    pairs = [pair for pair in named if pair]
    if len(pairs) < len(parts) or len({name for name, _ in pairs}) < len(parts):
        return None
    return [value for _, value in sorted(pairs)]


def _compare_structures(answer: str, gold: str, tolerance: float, depth: int) -> bool | None:
    kind, parts = structure(answer)
    gold_kind, gold_parts = structure(gold)
    for text, others in ((answer, gold_parts), (gold, parts)):
        if _DECIMAL_COMMA.fullmatch(text) and len(others) == 1:
            return None  # 1,22 may be a number beside a number; beside a list it is a list
    if _CONDITION.search(gold) and _AND.search(answer) and _OR.search(gold):
        return None  # both, and either; a gold that says `and` may mean either
    if len(parts) < 2 and len(gold_parts) < 2 and not (kind and gold_kind):
        return None
    if len(parts) == len(gold_parts) <= 32:
        if gold_kind == "()" and not kind and (ordered := _in_order(parts)):
            parts, kind = ordered, gold_kind
        elif kind == "()" and not gold_kind and (ordered := _in_order(gold_parts)):
            gold_parts, gold_kind = ordered, kind
    sets = ("\\{\\}", "")
    unordered = kind in sets and gold_kind in sets
    if kind != gold_kind and not unordered:
        both_paired = len(kind) == len(gold_kind) == 2 and len(parts) == len(gold_parts) == 2
        several = min(len(parts), len(gold_parts)) > 1
        set_and_tuple = several and {kind, gold_kind} == {"\\{\\}", "()"}
        set_and_tuple = set_and_tuple and not _CONDITION.search(answer + gold)
        return False if both_paired or set_and_tuple else None
    if len(parts) != len(gold_parts):
        plain = all(_value(part) is not None for part in parts + gold_parts)
        return False if plain else None
    if len(parts) > 32:
        return None
    if not unordered or _counted(parts, gold_parts):
        pairs = zip(parts, gold_parts, strict=True)
        verdicts = [_compare(*pair, tolerance, depth + 1) for pair in pairs]
        return False if False in verdicts else None if None in verdicts else True
    return _matched(parts, gold_parts, tolerance, depth)


def _counted(parts: list[str], gold_parts: list[str]) -> bool:
    """Whether one side says what each number counts (2 red, 3 blue) and the other does not."""
    sides = [[found and found[1] for found in map(quantity, side)] for side in (parts, gold_parts)]
    return any(
        len(set(named)) > 1 and None not in named and not any(bare)
        for named, bare in (sides, sides[::-1])
    )


def _matched(parts: list[str], gold_parts: list[str], tolerance: float, depth: int) -> bool | None:
    left = list(parts)
    unknown = False
    for wanted in gold_parts:
        verdicts = [_compare(part, wanted, tolerance, depth + 1) for part in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            unknown = True
        elif len(verdicts) == len(parts) or not unknown:
            return False
    return None if unknown else True


def _same_quantity(
    value: Fraction,
    unit: units.Unit | None,
    target: Fraction,
    gold_unit: units.Unit | None,
    tolerance: float,
) -> bool:
    def close(a: Fraction, b: Fraction) -> bool:
        return a == b or (tolerance > 0 and abs(a - b) <= Fraction(tolerance) * abs(b))

    if not units.alike(unit, gold_unit):
        return False
    if unit is None and units.is_percent(gold_unit):
        return close(value * 100, target) or (abs(value) >= 1 and close(value, target))
    if gold_unit is None and units.is_percent(unit):
        return close(value, target * 100) or (abs(target) >= 1 and close(value, target))
    return close(value * units.ratio(unit, gold_unit), target)
