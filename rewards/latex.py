r"""What two LaTeX answers say about each other by their text alone: same, different, or unknown.

This comes before computer algebra for speed, and instead of it where algebra is known to be wrong:
it forgets units (5 km = 5 m), bases (101_2 = 101), repeated elements ({1,1,2} = {1,2}) and small
differences (0.0000004 = 0.0000001), and does sums that were the question (\int_0^5 1dx).
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from grpo.rewards.exact import clean, number

_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|rm|operatorname)\{([^{}]*)\}"
)
_DEGREE = re.compile(r"\^ ?\{? ?\\(?:circ|degree)s? ?\}?|\\degree|\\circ(?![A-Za-z])")
_MIXED = re.compile(r"(-?)([0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}|(-?)([0-9]+) ([0-9]+)/([0-9]+)")
_BASE = re.compile(r"([0-9A-Fa-f]+) ?_ ?\{? ?([0-9]+) ?\}?")
_ASSIGN = re.compile(r"([A-Za-z](?:_\{?\w+\}?)?|\\[a-z]+) ?(?:=|\\in(?![a-z])) ?(.+)")
_UNEVALUATED = re.compile(r"\\(?:i*int|sum|prod|lim|limsup|liminf)(?![A-Za-z])")
_SEPARATOR = re.compile(r",|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
_UNIT = re.compile(r"(.*?[0-9})%]) ?([A-Za-z°%][A-Za-z°. /]*(?:\^ ?\{?[0-9]\}?|[²³])?\.?)")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
_LONG_DECIMAL = re.compile(r"\.[0-9]{12}")
_OPEN, _CLOSE = "([{", ")]}"
# Unicode and programming spellings of what LaTeX has a name for.
_SPELLINGS = {
    "\u221e": "\\infty ",
    "\u03c0": "\\pi ",
    "\u222a": "\\cup ",
    "\u2229": "\\cap ",
    "\u2205": "\\emptyset ",
    "\\varnothing": "\\emptyset",
    "\u2264": "\\le ",
    "\u2265": "\\ge ",
    "\u2260": "\\ne ",
    "\u2208": "\\in ",
    "\u00d7": "\\times ",
    "\u00b7": "\\cdot ",
    "\u00b1": "\\pm ",
    "\u2212": "-",
    "**": "^",
    "\\mathrm{e}": "e",
    "\\mathrm{i}": "i",
    "\u211d": "\\mathbb{R}",
    "\\mathbb R": "\\mathbb{R}",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
    "\\langle": "(",  # the peer's grammar has no angles: it would compare the last number alone
    "\\rangle": ")",
}
_ROOT = re.compile("\u221a ?(?:\\{([^{}]*)\\}|\\(([^()]*)\\)|([0-9]+|[A-Za-z]))")
_FUNCTION = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|ln|log|exp)(?= ?[(^_])")
_SQRT = re.compile(r"(?<![A-Za-z\\])sqrt ?(?=[({])")
_SUPERSCRIPTS = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_MINUS = re.compile("^(?:minus |negative |\u2013)(?=[0-9.\\\\])", re.IGNORECASE)
_REALS = re.compile(r"(?:\\text\{)?all (?:real numbers|reals)\}?\.?")
# A choice with or without what it says: "(B)", "B. 12 cm", "option B". Two choices are none.
_CHOICE = re.compile(
    r"(?:(?:the )?(?:correct )?(?:answer|option|choice) (?:is )?)?"
    r"(?:\( ?([A-J]) ?\)|([A-J])(?=$|[.):]))[.):]*(.*)",
    re.IGNORECASE,
)
_OTHER_CHOICE = re.compile(r"\([A-J]\)|(?<![A-Za-z])[A-J](?=[.):]|$)")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2}) ?(?:([ap])\.? ?m\.?)?", re.IGNORECASE)
_MODULUS = re.compile(r" ?\\pmod ?(?:\{[^{}]*\}|[0-9])| ?\( ?\\?mod [^()]*\)| \\?mod [0-9a-z]+$")
_RATIO = re.compile(r"([0-9]+) (?:to|:) ([0-9]+)")
_ARTICLE = re.compile(r"(?:an?|the) (?=[a-z]{3,}$)", re.IGNORECASE)
_MAGNITUDES = {"?thousand": 10**3, "?million": 10**6, "?billion": 10**9, "?trillion": 10**12}
_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_TIMES = re.compile(r"(?<=[0-9A-Za-z)]) ?\* ?(?=[0-9A-Za-z(\\])")
_RECURRING = re.compile(r"(-?)([0-9]{0,20})\.([0-9]{0,20})\\(?:overline|bar)\{([0-9]{1,20})\}")
_SCIENTIFIC = re.compile(
    r"(-?[0-9]{0,30}\.?[0-9]{1,30})(?:[eE]| ?\\(?:times|cdot) ?10 ?\^ ?)\{?([-+]?[0-9]{1,3})\}?"
)
_UNITS = {
    canonical: names.split("|")
    for canonical, names in (
        ("%", "%|percent|pct|percentage|per cent"),
        ("deg", "°|degree|degrees|deg"),
        ("mm", "mm|millimeter|millimeters"),
        ("cm", "cm|centimeter|centimeters"),
        ("m", "m|meter|meters|metre|metres"),
        ("km", "km|kilometer|kilometers"),
        ("in", "in|inch|inches"),
        ("ft", "ft|foot|feet"),
        ("yd", "yd|yard|yards"),
        ("mi", "mi|mile|miles"),
        ("mg", "mg|milligram|milligrams"),
        ("g", "g|gram|grams"),
        ("kg", "kg|kilogram|kilograms"),
        ("lb", "lb|lbs|pound|pounds"),
        ("oz", "oz|ounce|ounces"),
        ("s", "s|sec|second|seconds"),
        ("min", "min|minute|minutes"),
        ("h", "h|hr|hrs|hour|hours"),
        ("day", "day|days"),
        ("week", "week|weeks"),
        ("year", "year|years"),
        ("L", "L|l|liter|liters"),
        ("mL", "mL|ml|milliliter|milliliters"),
        ("$", "dollar|dollars|USD"),
        ("cent", "cent|cents"),
        ("th", "st|nd|rd|th"),
    )
}
_POWER = re.compile(r"([A-Za-z°%]+|[/.])(?:\^ ?\{?([0-9])\}?|([²³]))?")
_RAISED = re.compile(r"(sq\.?|square|cu\.?|cubic) ([a-z]+)")
_PLAIN = str.maketrans("²³", "23")
_WORD = re.compile(r"[A-Za-z]{3}|[A-Z](?![A-Za-z0-9^])|(?:[A-Za-z]+[ ./])+[A-Za-z]{2}")
_UNIT_OF = {name: canonical for canonical, names in _UNITS.items() for name in names}


def _is_integer(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit()


def respell(text: str) -> str:
    """An answer in LaTeX's spelling: Unicode signs, `pi`, `**` and `*` as its names."""
    if _is_integer(text):
        return text
    if text.startswith("**") and text.endswith("**"):  # Markdown's bold
        text = text.strip("*")
    if _REALS.fullmatch(text):
        return "(-\\infty,\\infty)"
    for spelling, name in _SPELLINGS.items():
        if spelling in text:
            text = text.replace(spelling, name)
    if "\u221a" in text:
        text = _ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2] or m[3]}}}", text)
    if not text.isascii():
        text = _SUPERSCRIPTS.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    if "pi" in text:
        text = _PI.sub(r"\\pi ", text)
    text = _MINUS.sub("-", _FUNCTION.sub(r"\\\1", text))
    for match in reversed(list(_SQRT.finditer(text))):
        start = match.end()
        end = start + _closing(text[start:])
        if end > start:
            inner = text[start + 1 : end]
            text = f"{text[: match.start()]}\\sqrt{{{inner}}}{text[end + 1 :]}"
    return _TIMES.sub(r" \\cdot ", text) if "*" in text else text


def normalize(text: str) -> str:
    r"""An answer without what never matters: delimiters, `\text`, sizes, outer braces, spacing."""
    text = clean(text)
    if text.count("$") % 2 == 0:  # an odd one is a currency
        text = text.replace("$", " ")
    if "\\" in text:
        text = _DEGREE.sub("°", _TEXT.sub(r" \1 ", text))
        text = text.replace("\\%", "%").replace("\\$", "$")
        text = re.sub(r"\\frac ?([0-9]) ?([0-9])", r"\\frac{\1}{\2}", text)
        text = re.sub(r"\\frac ?\{ ?([^{} ]+) ?\} ?\{ ?([^{} ]+) ?\}", r"\\frac{\1}{\2}", text)
    text = " ".join(text.split())
    while text.startswith("{") and _closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def _closing(text: str) -> int:
    """The index that closes the bracket at index 0, or -1."""
    depth = 0
    for index, char in enumerate(text):
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
            if depth == 0:
                return index
    return -1


def quantity(text: str) -> tuple[Fraction | None, str]:
    """(exact value, unit) of a normalized answer; (None, "") if it is not a number and a unit."""
    value = _value(text)
    if value is not None:
        return value, "$" if text.startswith("$") else ""
    if text.startswith("$"):
        text = text[1:].strip()
    match = _UNIT.fullmatch(text)
    if match and (unit := _unit(match[2].strip().rstrip("."), text[match.start(2) - 1] == " ")):
        value = _value(match[1].strip())
        if value is not None:
            return value, unit
    return None, ""


def _unit(name: str, apart: bool) -> str:
    """The unit of a name, "" for what may as well be a product of variables (2x, 3xy, 5i).

    A name that is not known is a unit ("?…") if it is a word of its own, `apart` from the number.
    """
    name = _RAISED.sub(lambda m: f"{m[2]}^{2 if m[1].startswith('sq') else 3}", name)
    name = name.replace(" ^", "^").replace("^ ", "^")
    if name in _UNIT_OF:
        return _UNIT_OF[name]
    parts = [_POWER.fullmatch(part) for part in name.replace("/", " / ").split()]
    names = [
        part and (_UNIT_OF.get(part[1], "") or (part[1] if part[1] in "/." else ""))
        for part in parts
    ]
    if all(names):
        powers = [part and (part[2] or part[3] or "") for part in parts]
        return " ".join(f"{n}{p}" for n, p in zip(names, powers, strict=True)).translate(_PLAIN)
    return "?" + name if apart and _WORD.match(name) else ""


def _value(text: str) -> Fraction | None:
    value = number(text)
    if value is None and (match := _MIXED.fullmatch(text)):
        sign, whole, top, bottom = (part for part in match.groups() if part is not None)
        if max(len(whole), len(top), len(bottom)) < 50 and int(bottom):
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
    parts: list[str] = []
    depth, start = 0, 0
    marks = sorted([(m.start(), m.end()) for m in _SEPARATOR.finditer(text)])
    position = 0
    for index, char in enumerate(text):
        while position < len(marks) and marks[position][0] < index:
            position += 1
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        if depth == 0 and position < len(marks) and marks[position][0] == index:
            parts.append(text[start:index].strip())
            start = marks[position][1]
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def structure(text: str) -> tuple[str, list[str]]:
    r"""(brackets, elements): ("\{\}", …) a set, ("(]", …) an interval or tuple, ("", …) a list."""
    inner = text
    if text.startswith("\\{") and text.endswith("\\}"):
        return "\\{\\}", split_top(text[2:-2])
    if text and text[0] in "([" and _closing(text) == len(text) - 1:
        inner = text[1:-1]
        parts = split_top(inner)
        if len(parts) > 1:
            return text[0] + text[-1], parts
    return "", split_top(text)


def both_signs(text: str) -> str:
    r"""A list with both values of each element that holds one `\pm`: x = 1 \pm y is 1+y, 1-y."""
    kind, parts = structure(normalize(text))
    if kind not in ("", "\\{\\}"):
        return text
    values: list[str] = []
    for part in parts:
        if (name := _ASSIGN.fullmatch(part)) and "=" not in name[2]:
            part = name[2]
        once = part.count("\\pm") == 1
        values += [part.replace("\\pm", sign) for sign in "+-"] if once else [part]
    return ", ".join(value.strip().removeprefix("+") for value in values)


def compare(answer: str, gold: str, tolerance: float = 0.0) -> bool | None:
    """True: the same. False: different, whatever algebra says. None: algebra has to decide."""
    mine, theirs = normalize(answer), normalize(gold)
    if mine == theirs or (_is_integer(mine) and _is_integer(theirs)):
        return _compare(mine, theirs, tolerance, 0)
    mine, theirs = _ARTICLE.sub("", mine), _ARTICLE.sub("", theirs)
    if mine.isalpha() and len(mine) > 1 and mine.casefold() == theirs.casefold():
        return True
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
    value, unit = quantity(answer)
    target, gold_unit = quantity(gold)
    if value is not None and target is not None:
        # A decimal of twelve places is a fraction printed by a program, not an approximation.
        loose = tolerance if "." in gold else 1e-11 if _LONG_DECIMAL.search(answer) else 0.0
        return _same_quantity(value, unit, target, gold_unit, loose)
    base, gold_base = _BASE.fullmatch(answer), _BASE.fullmatch(gold)
    if base or gold_base:
        if base and gold_base:
            return base.groups() == gold_base.groups()
        if (value if gold_base else target) is not None:
            return False
    if _UNEVALUATED.search(answer) and not _UNEVALUATED.search(gold):
        return False
    name, gold_name = _ASSIGN.fullmatch(answer), _ASSIGN.fullmatch(gold)
    if name and gold_name and "=" not in name[2] + gold_name[2]:
        if name[1] == gold_name[1]:
            return _compare(name[2].strip(), gold_name[2].strip(), tolerance, depth + 1)
        return None
    if gold_name and target is None and not name and "=" not in answer:
        return _only_true(_compare(answer, gold_name[2].strip(), tolerance, depth + 1))
    if name and not gold_name and "=" not in gold:
        return _only_true(_compare(name[2].strip(), gold, tolerance, depth + 1))
    return _compare_structures(answer, gold, tolerance, depth)


def _only_true(verdict: bool | None) -> bool | None:
    """A match decides; a mismatch of a rewritten form does not."""
    return True if verdict else None


def _compare_structures(answer: str, gold: str, tolerance: float, depth: int) -> bool | None:
    kind, parts = structure(answer)
    gold_kind, gold_parts = structure(gold)
    for text, others in ((answer, gold_parts), (gold, parts)):
        if _DECIMAL_COMMA.fullmatch(text) and len(others) == 1:
            return None  # 1,22 may be a number beside a number; beside a list it is a list
    if len(parts) < 2 and len(gold_parts) < 2 and not (kind and gold_kind):
        return None
    sets = ("\\{\\}", "")
    unordered = kind in sets and gold_kind in sets
    if kind != gold_kind and not unordered:
        both_paired = len(kind) == len(gold_kind) == 2 and len(parts) == len(gold_parts) == 2
        return False if both_paired else None
    if len(parts) != len(gold_parts):
        plain = all(_value(part) is not None for part in parts + gold_parts)
        return False if plain else None
    if len(parts) > 32:
        return None
    if not unordered:
        verdicts = [
            _compare(a, g, tolerance, depth + 1) for a, g in zip(parts, gold_parts, strict=True)
        ]
        return False if False in verdicts else None if None in verdicts else True
    left = list(parts)
    unknown = False
    for wanted in gold_parts:
        verdicts = [_compare(part, wanted, tolerance, depth + 1) for part in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            unknown = True
        elif len(verdicts) == len(parts):
            return False
        else:
            unknown = unknown or None in verdicts
            if not unknown:
                return False
    return None if unknown else True


def _same_quantity(
    value: Fraction, unit: str, target: Fraction, gold_unit: str, tolerance: float
) -> bool:
    def close(a: Fraction, b: Fraction) -> bool:
        return a == b or (tolerance > 0 and abs(a - b) <= Fraction(tolerance) * abs(b))

    if close(value, target):
        known = unit and gold_unit and "?" not in unit + gold_unit
        return unit == gold_unit or not known
    if unit in _MAGNITUDES and not gold_unit and close(value * _MAGNITUDES[unit], target):
        return True
    # 28% is 0.28; but a bare 28 is not
    if gold_unit == "%" and not unit:
        return close(value * 100, target)
    if unit == "%" and not gold_unit:
        return close(value, target * 100)
    return False
