r"""One formula as SymPy reads it, or nothing: every sign counts (confined side of `math`).

math-verify looks for a formula in a text, and its normalization drops what it does not know: units,
words, dots, quotes, dollars, the base of 10_2; it adds the numbers of "5 6". Here its parser gets
the whole text as it is. It ends in an error where a sign is left over, and what it would drop
silently is refused before. A word is a symbol of its own, never the product of its letters.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import sympy  # pyright: ignore[reportMissingTypeStubs]
from latex2sympy2_extended import latex2sympy2  # pyright: ignore[reportMissingTypeStubs]
from sympy.core.function import AppliedUndef  # pyright: ignore[reportMissingTypeStubs]

from grpo.rewards.math.latex import is_word

_sp: Any = sympy  # untyped
_peer: Any = latex2sympy2
_SPELLING = _peer.NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_READING = _peer.ConversionConfig(lowercase_symbols=False)
# The parser or its normalization drops these, adds them up or guesses: such a text is refused.
_REFUSED = re.compile(
    r"[\"$]|(?<![_0-9.])[0-9][0-9.]* +[0-9.]|[0-9)\]] ?_|\\phantom|\\approx|\\sim(?![a-z])"
    r"|[+\-] ?\\ldots|\\ldots ?[+\-]"
)
_WORDS = re.compile(
    r"(\\(?:begin|end) ?\{[a-z]{1,12}\*?\}(?: ?\{[clr|]{1,20}\})?|\\[A-Za-z]+)"
    r"|(?<![A-Za-z])[A-Za-z]+"
)
_COUNTED = re.compile(r"[0-9] ?\\text\{[^{}]*\}[^0-9,;]*[0-9]")  # 2 red 3 blue is no product
_SMALL = "an as at by do go he if in is it me my no of on or so to up us we"
_SMALL_WORDS = frozenset(_SMALL.split())
_FUNCTIONS = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp lim max min gcd lcm mod"
    " det and or dx dy dt infty sqrt frac"
)
_KNOWN = frozenset(_FUNCTIONS.split())
_VOWEL = re.compile("[aeiou]")
_ANGLE = re.compile(r"([0-9.]+|\\pi) ?°")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_IMAGINARY = re.compile(
    r"(?<![A-Za-z\\])i(?![A-Za-z])|(?<![A-Za-z\\])i(?=\\)|\\sqrt ?\{? ?-|\\imath"
)
_INDEX = re.compile(r"_ ?\{? ?i(?![a-z])|\\vec|(?<![A-Za-z\\])[jk](?![A-Za-z])")
_PRIMES = re.compile(r"(?<=[A-Za-z])('{1,4})")


def in_radians(text: str) -> str:
    r"""A text in which the arguments of trigonometric functions are numbers: \cos 60° of \pi/3."""
    if "°" not in text or not _TRIGONOMETRIC.search(text):
        return text
    return _ANGLE.sub(r"\\frac{\1 \\pi}{180}", text)


def may_be_complex(text: str) -> bool:
    """Whether a letter i is the imaginary unit: no index, and no unit vector beside j or k."""
    return _IMAGINARY.search(text) is not None and not _INDEX.search(text)


def _spelled(text: str) -> str | None:
    """A normalized text as the parser has to get it, None if it would not be read whole."""
    text = in_radians(text).replace("°", "").replace("%", "\\%").replace("\\vec{i}", "i")
    text = re.sub(r"\\vec\{([jk])\}", r"\1", text)
    text = _PRIMES.sub(lambda m: f"_{{{'prime' * len(m[1])}}}", text)
    if "'" in text or _REFUSED.search(text):
        return None
    text = _WORDS.sub(_named, text).replace("\\ldots", "\\text{dots}")
    return None if _COUNTED.search(text) else text


def _named(match: re.Match[str]) -> str:
    """A word, or the name of several points, as one symbol; factors as they are."""
    word = match[0]
    if match[1] or len(word) == 1 or word in _KNOWN:
        return word
    if word in _SMALL_WORDS or (is_word(word) and word.isupper()):
        return f"\\text{{{word}}}"
    before, after = match.string[: match.start()], match.string[match.end() :]
    alone = not before[-1:].isalnum() and not after[:1].isalnum() and after[:1] not in ("^", "_")
    long = len(word) > 3 or (len(word) == 3 and alone and is_word(word))
    spoken = _VOWEL.search(word.lower()) and is_word(word)
    return f"\\text{{{word}}}" if long and (spoken or not word.islower()) else word


@lru_cache(maxsize=4096)
def expression(text: str, imaginary: bool) -> Any:
    """The SymPy expression of a normalized text, None if it is not one formula from end to end.

    Raises whatever the parser and SymPy raise. `imaginary`: i is the imaginary unit, and variables
    are complex.
    """
    spelled = _spelled(text)
    if spelled is None:
        return None
    spelled = _peer.normalize_latex(spelled, _SPELLING)
    found: Any = _peer.latex2sympy(
        spelled,
        is_real=None if imaginary else True,
        normalization_config=None,
        conversion_config=_READING,
    )
    if imaginary:
        return found.xreplace({s: _sp.I for s in found.free_symbols if s.name in ("i", "imath")})
    return _real_roots(found)


def _real_roots(found: Any) -> Any:
    """-2 for the third root of -8, which for SymPy is complex."""
    if not isinstance(found, _sp.Basic):
        return found
    roots = {
        power: -_sp.Pow(-power.base, power.exp)
        for power in found.atoms(_sp.Pow)
        if power.exp.is_Rational and power.exp.q % 2 and power.exp.p == 1 and power.base.is_negative
    }
    return found.xreplace({p: r for p, r in roots.items() if p.exp.q > 1}) if roots else found


def is_name(found: Any) -> bool:
    """Whether a side of an equation names what the other side is the value of: x, f(x), AB, a/b."""
    if isinstance(found, (_sp.Symbol, AppliedUndef)):
        return True
    if getattr(found, "is_Function", False) or not getattr(found, "args", ()):
        return bool(getattr(found, "free_symbols", ())) and not getattr(found, "is_Number", False)
    powers = getattr(found, "is_Pow", False) and found.args[1] == -1
    return is_name(found.args[0]) if powers else all(map(is_name, found.args))
