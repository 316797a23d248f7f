"""Exact comparison of answers without computer algebra: strings, integers, decimals, fractions.

Numbers are compared as `Fraction`s, so 0.50 equals 1/2 and 0.0000004 does not equal 0.0000001.
Nothing here executes, parses as code or grows beyond the text it is given.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH = 4096  # characters; longer answers are compared as strings only
MAX_DIGITS = 256  # digits of one number; int() of more is slow and never an answer
_NO_SPACE = re.compile(r"\\!\s*|(?<=[0-9])\\,(?=[0-9]{3})")
_SPACING = re.compile(r"\\[,;: ]|~|\\(?:quad|qquad|left|right|displaystyle)(?![A-Za-z])")
_SPACES = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]+")
_GROUPED = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+(?:\.[0-9]*)?")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_RATIO = re.compile(r"([-+]?[0-9]+)/([0-9]+)")
_FRAC = re.compile(r"([-+]?)\\[dtc]?frac(?:\{([-+]?[0-9]+)\}\{([-+]?[0-9]+)\}|([0-9])([0-9]))")
_WRAPS = (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def clean(text: str) -> str:
    r"""Strip what never changes an answer: math delimiters, spacing, `\left`, a final full stop."""
    text = text.strip()
    if len(text) > MAX_LENGTH or (text.isascii() and text.isalnum()):  # a word, a whole number
        return text
    text = _SPACES.sub(" ", _SPACING.sub(" ", _NO_SPACE.sub("", text))).strip()
    for opening, closing in _WRAPS:
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
        ):
            text = text[len(opening) : -len(closing)].strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text.replace("\u2212", "-").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")


def number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal, a/b or `\frac{a}{b}`; None if it is anything else.

    `text` is already `clean`. Thousands separators must group by three.
    """
    if len(text) > 2 * MAX_DIGITS or not text:
        return None
    if text.isascii() and text.isalnum():
        return Fraction(int(text)) if text.isdigit() and len(text) <= MAX_DIGITS else None
    body = text.removeprefix("\\$").removeprefix("$").replace(" ", "")
    if _GROUPED.fullmatch(body) and ", " not in text:
        body = body.replace("{,}", "").replace(",", "")
    if _DECIMAL.fullmatch(body):
        # "1 234" is not one number: spaces may only surround the digits
        if len(body) > MAX_DIGITS or _digits_apart(text):
            return None
        return Fraction(body)
    match = _RATIO.fullmatch(body)
    if match and not _digits_apart(text):
        top, bottom = int(match[1]), int(match[2])
        return Fraction(top, bottom) if bottom else None
    match = _FRAC.fullmatch(body)
    if match:
        top, bottom = int(match[2] or match[4]), int(match[3] or match[5])
        value = Fraction(top, bottom) if bottom else None
        return -value if value is not None and match[1] == "-" else value
    return None


def _digits_apart(text: str) -> bool:
    return re.search(r"[0-9.] +[0-9.]", text) is not None


def same(answer: str, gold: str) -> bool:
    """Whether two answers are the same string, word (True, true) or rational number."""
    if answer == gold:
        return True
    a, b = clean(answer), clean(gold)
    if a == b or (len(a) > 1 and a.isalpha() and a.casefold() == b.casefold()):
        return True
    left = number(a)
    return left is not None and left == number(b)
