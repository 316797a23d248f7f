r"""Quantities: what a number counts, measures or is worth.

A unit is a product of known ones (m, kJ, km/h), with an exact factor to the unit of its kind, or a
word that is not known and then equals only itself. A bare number beside one with a unit is equal:
5 cm = 5, 5 apples = 5. A magnitude is no unit but a factor: 5 million is 5,000,000 and not 5.

Prefixes and factors are those of the SI (BIPM brochure, 9th edition) and NIST SP 811.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from grpo.rewards.math.exact import number

_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
MAGNITUDES = {"dozen": 12} | {name: 10**power for name, power in _POWERS.items()}
# A unit a line: symbol, kind (m_s-1 is m/s), exact factor to the kind's first unit, other names.
_KNOWN = r"""
%     %     1                percent pct percentage
°     °     1                degree degrees deg
rad   rad   1                radian radians
°C    °C    1                celsius degC
°F    °F    1                fahrenheit degF
in    m     254/10000        inch inches
ft    m     3048/10000       foot feet
yd    m     9144/10000       yard yards
mi    m     1609344/1000     mile miles
lb    g     45359237/100000  lbs
oz    g     45359237/1600000 ounce ounces
t     g     1000000          tonne tonnes
min   s     60               mins minute minutes
h     s     3600             hr hrs hour hours
d     s     86400            day days
week  s     604800           weeks wk
month month 1                months
year  month 12               years yr yrs
$     $     1                dollar dollars USD
¢     $     1/100            cent cents
€     €     1                euro euros EUR
£     £     1                GBP \pounds
pound pound 1                pounds
¥     ¥     1                yen JPY
₹     ₹     1                rupee rupees INR Rs
unit  unit  1                units
th    th    1                st nd rd
hertz Hz    1
cc    m3    1/1000000
mph   m_s-1 1397/3125
kph   m_s-1 5/18             kmh
"""
# What takes the prefixes of the SI: the symbol of a kind's first unit, then its names.
_SI = """
m meter metre, g gram gramme, s second sec, L liter litre l, J joule, W watt, N newton, Pa pascal,
V volt, A ampere amp, K kelvin, C coulomb, F farad, T tesla, Hz hertz, mol mole, Ω ohm,
eV electronvolt, cal calorie, B byte, bit bit
"""
_PREFIXES = """
n nano -9, μ micro -6, m milli -3, c centi -2, d deci -1, k kilo 3, M mega 6, G giga 9, T tera 12
"""
_SAME = (  # a word that is short for either
    frozenset(("pound", "£")),
    frozenset(("pound", "g")),
    frozenset(("°", "°C")),
    frozenset(("°", "°F")),
)
_SIGNS = "$€£¥₹¢"
_FIRST_NUMBER = re.compile(r"-?[0-9][0-9.,]{0,300} ?(?=[A-Za-z])")
_LAST_POWER = re.compile(r"\^ ?\{?-?[0-9]\}?$|[²³]$")
_PART = re.compile(r"([0-9][0-9.]{0,30}) ?([A-Za-z]{1,20})")
_FACTOR = re.compile(r"([A-Za-z°%$€£¥₹¢μµΩ]+)(?: ?\^ ?\{?(-?[0-9])\}?|\{?\^?([²³])\}?)?")
_RAISED = re.compile(r"(sq\.?|square|cu\.?|cubic) ([A-Za-z]+)")
_WORD = re.compile(r"[A-Za-z]{3}|[A-Z](?![A-Za-z0-9^])|(?:[A-Za-z]+[ ./])+[A-Za-z]{2}")
_ORDINARY = re.compile(r"[A-Za-z][A-Za-z'’ ./-]{0,59}")  # noqa: RUF001
# Words that say more about a number than what it counts: "12 or more" is not 12.
_OTHER = """
a and are at between but by cap choose cup does else equals except exactly factorial from if is in
increase decrease gain least less loss maybe minus mod modulo more most no none not nor of off only
or otherwise over plus possibly than the then through times to under until up when where while with
without
"""
_NO_UNIT = frozenset(_OTHER.split())
# Words after a unit that change nothing: 5 feet tall.
_AFTER = "old long tall high wide deep away apart each total altogether"
_LOOSE = frozenset(_AFTER.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What a unit measures (`kind`, "?" and a noun where it is not known) and its exact size."""

    kind: str
    factor: Fraction = Fraction(1)

    @property
    def known(self) -> bool:
        return not self.kind.startswith("?")


def _table() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for symbol, *names in map(str.split, _SI.split(",")):
        symbols = {symbol, *(name for name in names if len(name) == 1)}
        words = [name for name in names if len(name) > 1]
        for short, long, power in [("", "", "0"), *map(str.split, _PREFIXES.split(","))]:
            size = Unit(kind=symbol, factor=Fraction(10) ** int(power))
            found |= dict.fromkeys((short + name for name in symbols), size)
            found |= dict.fromkeys((long + word + end for word in words for end in ("", "s")), size)
    for line in _KNOWN.strip().splitlines():
        symbol, kind, factor, *names = line.split()
        size = Unit(kind=kind.replace("_", " "), factor=Fraction(factor))
        found |= dict.fromkeys((symbol, *names), size)
    return found


UNITS = _table()


def unit(name: str, apart: bool) -> Unit | None:
    """The unit of a name, None for what may as well be a product of variables (2x, 3xy, 5i).

    A name that is not known is a unit only as a word of its own, `apart` from the number.
    """
    name = name.strip().replace("\\mu ", "μ").replace("\\Omega", "Ω")
    if name.endswith("."):
        name = name[:-1].rstrip()
    while (cut := name.rpartition(" "))[2] in _LOOSE and cut[0]:
        name = cut[0]
    if name in UNITS and (apart or len(name) > 1 or not name.isalpha()):
        return UNITS[name]
    if name.startswith("°") and (rest := name[1:].strip()) in ("C", "F"):
        return UNITS[f"°{rest}"]
    if name in ("degrees C", "degrees Celsius", "degrees F", "degrees Fahrenheit"):
        return UNITS[f"°{name[8]}"]
    if len(name) > 60:
        return None
    product = _product(name) if apart or len(name) > 2 else None
    if product is not None:
        return product
    words = name.replace("-", " ").lower().split()
    plain = apart and _WORD.match(name) and _ORDINARY.fullmatch(name)
    if not plain or not _NO_UNIT.isdisjoint(words):
        return None
    return Unit(kind="?" + " ".join(map(_singular, words)))


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-1] if word.endswith("s") and len(word) > 3 and not word.endswith("ss") else word


def _product(name: str) -> Unit | None:
    """km/h, m/s^2, kg m^2, square feet, miles per hour; None where a part of it is not known."""
    name = _RAISED.sub(lambda m: f"{m[2]}^{2 if m[1].startswith('sq') else 3}", name)
    name = name.replace(" ^", "^").replace("^ ", "^").replace("\\cdot", " ").replace("·", " ")
    powers: dict[str, int] = {}
    size, sign = Fraction(1), 1
    for part in name.replace("/", " per ").split():
        if part == "per":
            sign = -1
            continue
        match = _FACTOR.fullmatch(part)
        found = match and UNITS.get(match[1])
        if not match or not found:
            return None
        power = sign * int(match[2] or {"²": 2, "³": 3}.get(match[3] or "", 1))
        powers[found.kind] = powers.get(found.kind, 0) + power
        size *= found.factor**power
    raised = sorted((kind, power) for kind, power in powers.items() if power)
    kinds = " ".join(f"{kind}{'' if power == 1 else power}" for kind, power in raised)
    return Unit(kind=kinds, factor=size) if kinds else None


def split(text: str, near: bool = False) -> tuple[str, Unit | None, int]:
    r"""(formula, its unit, the magnitude that multiplies it) of a normalized answer.

    A currency may stand in front. `near`: a letter that touches the number is a unit (5m), too.
    (text, None, 1) where nothing at the end is a unit.
    """
    front, body = _currency(text)
    for start in _ends(body):
        before, name = body[:start].rstrip(), body[start:]
        name, size = _magnitude(name)
        if size != 1 and not name:
            return before, front, size
        found = unit(name, near or size != 1 or body[start - 1] in " }°")
        if found and front in (None, found):
            return before, found, size
    return body, front, 1


def _magnitude(name: str) -> tuple[str, int]:
    """(what is counted, by how much): ("people", 10**5) of "hundred thousand people"."""
    size = 1
    while factor := MAGNITUDES.get(name.partition(" ")[0].lower().removesuffix("s")):
        size *= factor
        name = name.partition(" ")[2]
        if size > 10**18:
            break
    return name, size


def _currency(text: str) -> tuple[Unit | None, str]:
    sign = "-" if text.startswith("-") else ""
    rest = text.removeprefix("-").lstrip()
    for mark in (*_SIGNS, "\\pounds"):
        if rest.startswith(mark):
            return UNITS[mark], sign + rest[len(mark) :].strip()
    return None, text


def _ends(text: str) -> list[int]:
    """Where the unit of a formula may begin: after its last number, brace or bracket."""
    power = _LAST_POWER.search(text, max(0, len(text) - 6))
    stop = power.start() if power else len(text)
    last = max(text.rfind(c, 0, stop) for c in "0123456789})!²³")
    pi = text.rfind("\\pi", 0, stop)
    starts = {max(last, pi + 2 if pi >= 0 else -1) + 1}
    if first := _FIRST_NUMBER.match(text):  # 5 kg m^2/s^2 has digits further on
        starts.add(first.end())
    return [
        len(text) - len(rest)
        for start in sorted(starts)
        if start and (rest := text[start:].lstrip())
    ]


def compound(text: str) -> tuple[Fraction, Unit] | None:
    """(the sum, in the kind's first unit) of 3 h 20 min or 5 feet, 4 inches; None if it is none."""
    total, kind, end, count = Fraction(0), "", 0, 0
    for match in _PART.finditer(text):
        value, found = number(match[1]), unit(match[2], apart=True)
        gap = text[end : match.start()]
        if value is None or not found or not found.known or (count and found.kind != kind):
            return None
        if gap.strip() not in (("", ",", "and", ", and") if count else ("",)):
            return None
        total, kind, end, count = total + value * found.factor, found.kind, match.end(), count + 1
    return (total, Unit(kind=kind)) if count > 1 and end == len(text) else None


def alike(mine: Unit | None, theirs: Unit | None) -> bool:
    """Whether two quantities may be equal at all: a bare number goes with every unit."""
    if mine is None or theirs is None or mine.kind == theirs.kind:
        return True
    return frozenset((mine.kind, theirs.kind)) in _SAME


def ratio(mine: Unit | None, theirs: Unit | None) -> Fraction:
    """By how much a number in `mine` has to be multiplied to be one in `theirs`; 1 if either is
    bare.
    """
    if mine is None or theirs is None or mine.kind != theirs.kind:
        return Fraction(1)
    return mine.factor / theirs.factor


def is_percent(found: Unit | None) -> bool:
    """Whether a number with this unit is in hundredths.

    Beside it a bare number of size below 1 is a share (5% = 0.05, and 0.05% is not 0.05); any other
    one is the share or the percentage (28% = 28, 280% = 2.8).
    """
    return found is not None and found.kind == "%"
