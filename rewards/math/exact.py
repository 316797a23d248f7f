"""Exact numbers without computer algebra: comparison of answers, arithmetic of integers.

Numbers are compared as `Fraction`s, so 0.50 equals 1/2, 1e-5 equals 0.00001 and 0.0000004 does not
equal 0.0000001.
Nothing here executes or grows beyond the text it is given. Only `evaluate` parses it as code, to
an abstract syntax tree of integers and four operators: no `**`, no `//`, no decimal point (graders
that evaluate the text accept "1.5" as the numbers 1 and 5, and hang on 9**9**9).
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

MAX_LENGTH = 4096  # characters; longer answers are compared as strings only
MAX_DIGITS = 512  # characters of one number, enough for every float written out
MAX_EXPONENT = 400  # of ten; beyond every float, and 10**9 would take minutes
NO_SPACE = re.compile(r"\\!\s*|(?<=[0-9])\\,(?=[0-9]{3})")
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|~|\\(?:quad|qquad|left|right|displaystyle)(?![A-Za-z])")
_SPACES = re.compile(r"[\s\u200b-\u200d\u2060\ufeff]+")
_GROUPED = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:(?:,|\{,\})[0-9]{3})+(?:\.[0-9]*)?")
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_SCIENTIFIC = re.compile(  # 1.5e3, 1.5 times 10^{3}, 10^3
    r"([-+]?)(?:([0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE]|(?:\\times|\\cdot|[\u00d7\u00b7*])10\^)|10\^)"
    r"(?:([-+]?[0-9]{1,3})|\{([-+]?[0-9]{1,3})\})"
)
_RAISED = re.compile("10([\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,3})")
_LOWERED = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)
_RATIO = re.compile(r"([-+]?[0-9]+)/([0-9]+)")
_FRAC = re.compile(r"([-+]?)\\[dtc]?frac(?:\{([-+]?[0-9]+)\}\{([-+]?[0-9]+)\}|([0-9])([0-9]))")
_WRAPS = (("**", "**"), ("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def clean(text: str) -> str:
    r"""Strip what never changes an answer: math delimiters, spacing, `\left`, a final full stop."""
    text = text.strip()
    if len(text) > MAX_LENGTH or (text.isascii() and text.isalnum()):  # a word, a whole number
        return text
    text = _SPACES.sub(" ", _SPACING.sub(" ", NO_SPACE.sub("", text))).strip()
    for opening, closing in _WRAPS:
        long = len(text) > len(opening) + len(closing)
        if long and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text.replace("\u2212", "-").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")


def number(text: str) -> Fraction | None:
    r"""The exact value of an integer, decimal, a/b, `\frac{a}{b}`, 1e-5 or `1 \times 10^{-5}`.

    None if it is anything else. `text` is already `clean`. Thousands separators must group by
    three, and an exponent of ten is at most 400.
    """
    if text.isascii() and text.removeprefix("-").isdigit():  # within Python's 4,300 digits
        return Fraction(int(text)) if len(text) <= MAX_LENGTH else None
    if len(text) > 2 * MAX_DIGITS or not text:
        return None
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
    return _scientific(body, text)


def _scientific(body: str, text: str) -> Fraction | None:
    """The value of a number times a power of ten; `body` is `text` without its spaces."""
    body = _RAISED.sub(lambda raised: f"10^{raised[1].translate(_LOWERED)}", body)
    match = _SCIENTIFIC.fullmatch(body)
    if match is None or len(body) > MAX_DIGITS or _digits_apart(text):
        return None
    power = int(match[3] or match[4])
    if abs(power) > MAX_EXPONENT or ("10^" not in body and " " in text):
        return None  # 2 e - 5 with spaces is a difference
    return Fraction(match[1] + (match[2] or "1")) * Fraction(10) ** power


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


MAX_EXPRESSION = 512  # characters of an expression
FOUR: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: a / b,
}
_ALLOWED = re.compile(r"[0-9+\-*/() \t\n]+")
# Unicode's signs (times, dot and asterisk operator, division, minus and en dash), LaTeX's names.
_SIGNS = str.maketrans("\u00d7\u00b7\u2217\u00f7\u2212\u2013", "***/--")
_NAMES = {"\\times": "*", "\\cdot": "*", "\\div": "/"}


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression and the integers written in it, in order.

    Raises ValueError, with the reason, for anything but integers, + - * / and parentheses.
    """
    if len(expression) > MAX_EXPRESSION:
        raise ValueError("the expression is too long")
    expression = expression.translate(_SIGNS)
    for name, sign in _NAMES.items():
        expression = expression.replace(name, sign)
    if not _ALLOWED.fullmatch(expression):
        raise ValueError("only integers, + - * / and parentheses are allowed")
    try:
        tree = ast.parse(" ".join(expression.split()), mode="eval")
        used: list[int] = []
        return _value(tree.body, used), used
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError("not an arithmetic expression") from error
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error


def _value(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            used.append(value)
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, used)
        case ast.BinOp(left=left, op=sign, right=right):
            a, b = _value(left, used), _value(right, used)
            if type(sign) not in FOUR:
                raise ValueError("only + - * / are allowed")
            return FOUR[type(sign)](a, b)
        case _:
            raise ValueError("only integers, + - * / and parentheses are allowed")
