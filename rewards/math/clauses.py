r"""An answer cut into words and values: "She has $12$ marbles left." is two words, a value and
two words.

A value is a run of formula: numbers, names of one letter, commands, operators, brackets. Everything
else is a word. Each function is one linear scan: answers are hostile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from grpo.rewards.math import vocabulary

_LETTER = "[^\\W\\d_]"
_TOKEN = re.compile(
    r"(?P<space>[\s\u200b-\u200d\u2060\ufeff]+|\\[,;:! ]|~(?=\S)|\\q?quad(?![A-Za-z])|"
    r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z]))"
    r"|(?P<dots>\\(?:[lc]|vd|dd)?dots[cbmio]?(?![A-Za-z])|\.\.+|\u2026|\u22ef)"
    r"|(?P<block>\\(?:begin|end) ?\{[A-Za-z]+\*?\}(?: ?\{[lcr| ]*\})?)"
    r"|(?P<line>\\\\(?:\[[0-9a-z. ]*\])?)"
    r"|(?P<clock>[ap]\. ?m\b\.?)"
    r"|(?P<number>(?:\\?[$\u20ac\u00a3\u00a5] ?)?"
    r"(?:[0-9]+(?:(?:,|\{,\}|:)[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:st|nd|rd|th)?(?![A-Za-z])|(?:\\?[$\u20ac\u00a3\u00a5] ?)?[0-9]+(?:\.[0-9]+)?)"
    r"|(?P<command>\\[A-Za-z]+\*?|\\.)"
    r"|(?P<word>n/a(?![a-z])|[\u0400-\u04ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+|"
    rf"{_LETTER}{{2,}}(?:['\u2019\-]{_LETTER}+|(?: ?/ ?){_LETTER}+(?![(\[^]))*"
    r"(?: ?\^ ?(?:\{ ?-?[0-9] ?\}|[0-9])|[\u00b2\u00b3])?)"
    rf"|(?P<letter>{_LETTER})"
    r"|(?P<question>[?\uff1f])"
    r"|(?P<comma>[,;\uff0c\u3001\uff1b])"
    r"|(?P<colon>[:\uff1a])"
    r"|(?P<sign>!=|!(?=[^\s,;!?]| [^\sA-Za-z]))"
    r"|(?P<stop>[.!\u3002\uff01\"\u201c\u201d\u2018'`])"
    r"|(?P<other>.)",
    re.IGNORECASE | re.DOTALL,
)
_RELATION = re.compile(
    r"\\(?:l[et]q?|g[et]q?|[lg]eqslant|neq?|approx|sim|simeq|not|neg|lnot)(?![A-Za-z])|"
    r"[<>~\u2264\u2265\u2260\u2248\u2243\u223c\u00ac]"
)
_OPENING, _CLOSING = "([{", ")]}"
_OPERATORS = "+-*/=^_<>|\u2264\u2265\u2260\u2248\u00b1\u00d7\u00b7\u2212"


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A word (lower case), a value (as written), or a separator of a list."""

    kind: Literal["word", "value", "comma", "colon", "line", "question", "dots"]
    text: str
    written: str = ""  # a word as it was


@lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[Token, ...]:
    """Words, values and separators of `plain` text, in order."""
    text = text.replace("\ue001", "{").replace("\ue002", "}")
    found = [match for match in _TOKEN.finditer(text) if match.lastgroup]
    kinds = [_kind(text, found, index) for index in range(len(found))]
    kinds = _grouped(found, kinds)
    depth_of_words = _wordy(found, kinds)
    made: list[Token] = []
    start = end = -1
    depth = 0

    def flush() -> None:
        nonlocal start
        if start >= 0 and any(c.isalnum() for c in text[start:end]):
            made.append(Token(kind="value", text=text[start:end].strip()))
        start = -1

    for index, (match, kind) in enumerate(zip(found, kinds, strict=True)):
        written = match[0]
        if kind == "formula":
            if depth == 0 and start >= 0 and _second_number(text, found, index):
                flush()
            # a bracket around words is an aside: "5 (five)"
            if written[-1] in _OPENING + _CLOSING and depth_of_words[index]:
                flush()
                continue
            depth += _deeper(written)
            start, end = (match.start() if start < 0 else start), match.end()
        elif kind in ("comma", "line", "dots", "colon") and depth > 0 and start >= 0:
            end = match.end()
        elif kind == "space":
            continue
        else:
            flush()
            depth = 0
            if kind == "word":
                folded = written.lower().replace("\u2019", "'").replace(". ", ".")
                made.append(Token(kind="word", text=folded, written=written))
            elif kind in ("comma", "colon", "line", "question", "dots"):
                made.append(Token(kind=kind, text=written))
    flush()
    return tuple(made)


def _second_number(text: str, found: list[re.Match[str]], index: int) -> bool:
    """Whether a number stands beside another one, with nothing but space between: "5 2020".

    Not in a mixed number (1 2/3), nor where spaces group the digits by three (1 000 000).
    """
    match = found[index]
    if index < 2 or match.lastgroup != "number" or found[index - 1].lastgroup != "space":
        return False
    before = found[index - 2]
    if before.lastgroup != "number" or text[match.end() : match.end() + 2].lstrip()[:1] == "/":
        return False
    return not (len(before[0]) <= 3 and len(match[0]) == 3)


def _deeper(written: str) -> int:
    """How many brackets or environments a piece of formula opens, less those it closes."""
    if written.startswith(("\\begin", "\\end")):
        return 1 if written.startswith("\\b") else -1
    return (written[-1] in _OPENING) - (written[-1] in _CLOSING)


def _kind(text: str, found: list[re.Match[str]], index: int) -> str:
    """What a match is: space, word, formula, or a separator's name."""
    match = found[index]
    group, written = str(match.lastgroup), match[0]
    if group in ("number", "command", "sign", "other", "block"):
        return "formula"
    if group == "clock":
        return "word"
    if group == "letter":
        return "word" if _article(text, match) else "formula"
    if group == "word":
        if written.lower() in vocabulary.FUNCTIONS:
            return "word" if _is_unit(text, match) else "formula"
        return "word" if _is_word(text, match) else "formula"
    return group


def _article(text: str, match: re.Match[str]) -> bool:
    """Whether a lone letter is the article or the pronoun: "a cat", "I think"."""
    after = text[match.end() : match.end() + 4]
    spaced = len(after) > 2 and after[0] == " " and after[1:3].isalpha()
    if match[0] == "A" and after[1:].strip() in ("or", "and", "is"):
        return False
    before = text[match.start() - 1 : match.start()]
    return match[0] in "aAI" and spaced and before in ("", " ", "\n")


def _is_unit(text: str, match: re.Match[str]) -> bool:
    """Whether a function's name is a unit after a number: "20 min"."""
    after = text[match.end() : match.end() + 2].lstrip()[:1]
    counted = text[: match.start()].rstrip()[-1:].isdigit()
    goes_on = after.isdigit() or after in tuple("({\\^_")
    return match[0] in ("min", "deg") and counted and not goes_on


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether letters in a row are a word, not a product: nothing of a formula touches them."""
    written = match[0]
    if len(written) > 3 or not written.isascii() or written.lower() in vocabulary.SHORT:
        return True
    before = text[: match.start()][-2:]
    after = text[match.end() : match.end() + 2]
    touching = (before[-1:].isdigit() or before[-1:] in "^_}") and before != ""
    if touching or after[:1].isdigit() or after[:1] in tuple("^_("):
        return False
    near = before.strip()[-1:] + after.strip()[:1]
    return not any(char in _OPERATORS for char in near)


def _grouped(found: list[re.Match[str]], kinds: list[str]) -> list[str]:
    r"""Kinds with letters in a LaTeX group as formula: S_{ABC} and \frac{NO}{BO} hold no words."""
    depth = 0
    made: list[str] = []
    for match, kind in zip(found, kinds, strict=True):
        depth = max(0, depth + (match[0] == "{") - (match[0] == "}"))
        made.append("formula" if kind == "word" and depth else kind)
    return made


def _wordy(found: list[re.Match[str]], kinds: list[str]) -> list[bool]:
    """Per token: is it a bracket whose inside holds a word (and that no command takes)?"""
    wordy = [False] * len(found)
    stack: list[tuple[int, int]] = []
    words = 0
    for index, (match, kind) in enumerate(zip(found, kinds, strict=True)):
        words += kind == "word"
        if match[0] in _OPENING:
            stack.append((index, words))
        elif match[0] in _CLOSING and stack:
            opening, before = stack.pop()
            if words > before:
                wordy[opening] = wordy[index] = True
    for opening, before in stack:
        wordy[opening] = words > before
    return wordy


def words_of(found: Iterable[Token]) -> list[str]:
    """The words among tokens, in lower case."""
    return [token.text for token in found if token.kind == "word"]


def places_of_values(found: Iterable[Token]) -> list[int]:
    """The indices of the values among tokens."""
    return [index for index, token in enumerate(found) if token.kind == "value"]


def relation(value: str) -> str:
    """The relation that a value begins with ("<5", "\\neq 5"), or ""."""
    match = _RELATION.match(value.lstrip())
    return match[0] if match else ""
