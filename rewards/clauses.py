r"""An answer cut into words and values: "She has $12$ marbles left." is two words, a value, two words.

A value is a run of formula: numbers, names of one letter, commands, operators, brackets. Everything
else is a word. Each function is one linear scan: answers are hostile.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

# Commands whose argument is text, or only looks: what they hold is read as if it stood there.
_DRESS = re.compile(
    r"\\(?:text(?:bf|it|rm|tt|sf|sc|normal|up)?|mbox|emph|underline|mathrm|mathbf|mathit|mathsf|"
    r"operatorname|hbox|bold|boldsymbol)\*? ?\{([^{}]*)\}"
)
_EMPHASIS = re.compile(
    r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]{1,400})(?<=\S)\1(?![\w*])"
    r"|(?<![\w_])(__?)(?=[^\s_])([^_\n{}\\^]{1,400})(?<=\S)\3(?![\w_])|`([^`\n]+)`"
)
# A command that was escaped once too often, as in JSON: nothing of LaTeX reads "\\\\frac".
_TWICE = re.compile(
    r"(?<!\\)\\\\(?=(?:[dt]?frac|left|right|sqrt|text|mathrm|pi|infty|cdot|times|[lg]eq?|cup|cap|in|"
    r"pm|angle|circ|alpha|beta|theta|sin|cos|tan|log|ln|boxed|quad|begin|end)(?![A-Za-z])|[{}%$](?!\\))"
)
_COMMA_LAST = re.compile(r"(?<![\\,;.\s])(?:[,;](\$*)|\.(\$+))$")
_DOLLARS = re.compile(r"(?<!\\)\$\$?")
_NO_SPACE = re.compile(r"\\!\s*|(?<=[0-9])\\,(?=[0-9]{3})")
_BRACKETS = re.compile(r"\\[()\[\]]")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}|(?<![\\A-Za-z])[A-Za-z]{4,}")
_LETTER = "[^\\W\\d_]"
_TOKEN = re.compile(
    r"(?P<space>[\s\u200b-\u200d\u2060\ufeff]+|\\[,;:! ]|~(?=\S)|\\q?quad(?![A-Za-z])|"
    r"\\(?:left|right|displaystyle|[bB]igg?[lr]?)(?![A-Za-z]))"
    r"|(?P<dots>\\(?:[lc]|vd|dd)?dots[cbmio]?(?![A-Za-z])|\.\.+|\u2026|\u22ef)"
    r"|(?P<block>\\(?:begin|end) ?\{[A-Za-z]+\*?\}(?: ?\{[lcr| ]*\})?)"
    r"|(?P<line>\\\\(?:\[[0-9a-z. ]*\])?)"
    r"|(?P<clock>[ap]\. ?m\b\.?)"
    r"|(?P<number>(?:\\?[$\u20ac\u00a3\u00a5] ?)?(?:[0-9]+(?:(?:,|\{,\}|:)[0-9]+)*(?:\.[0-9]+)?|\.[0-9]+)"
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
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min lim gcd lcm mod "
    "det dim ker deg arg inf sup sqrt pi infty infinity".split()
)
_RELATIONS = frozenset(
    "< > \u2264 \u2265 \u2260 \u2248 ~ \u2243 \u223c \\lt \\gt \\le \\ge \\leq \\geq \\leqslant "
    "\\geqslant \\ne \\neq \\approx \\sim \\simeq \\not \\neg \\lnot \u00ac".split()
)
# Words of two and three letters that stand beside a sign without being a product: "2 and -2".
_SHORT = frozenset(
    "and or is are to of in by at for no not the an on per than was so but we it if as out has had "
    "get all any be et und ou est ist es son non el la le une un los das der die sum he she".split()
)
_OPENING, _CLOSING = "([{", ")]}"
_OPERATORS = "+-*/=^_<>|\u2264\u2265\u2260\u2248\u00b1\u00d7\u00b7\u2212"


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A word (lower case), a value (as written), or a separator of a list."""

    kind: Literal["word", "value", "comma", "colon", "line", "question", "dots"]
    text: str
    written: str = ""  # a word as it was


def undress(text: str) -> str:
    r"""A text without Markdown's emphasis, quotes around it, and headings' signs."""
    text = text.strip()
    if text.isalnum():
        return text
    if "\\\\" in text:
        text = _TWICE.sub(r"\\", text)
    text = text[:-1] if text.endswith("$.") else text
    text = _COMMA_LAST.sub(r"\1\2", text)
    if text.startswith("$") and text.endswith("$") and len(_DOLLARS.findall(text)) == 2:
        text = text.strip("$").strip() if not text.endswith("\\$") else text
    while text.startswith("{") and text.endswith("}") and _braced(text):
        text = text[1:-1].strip()
    if any(c in text for c in "*_`"):
        for _ in range(2):
            text = _EMPHASIS.sub(lambda m: m[2] or m[4] or m[5] or "", text)
    text = text.lstrip("#").strip() if text.startswith("#") else text
    for opening, closing in (("\u201c", "\u201d"), ('"', '"'), ("\u2018", "\u2019"), ("``", "''")):
        if len(text) > 2 and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    return text


def _braced(text: str) -> bool:
    """Whether the brace at index 0 closes at the end."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return index == len(text) - 1
    return False


def plain(text: str) -> str:
    r"""A text without delimiters of math and without `\text`: words beside formulas."""
    if "$" in text:
        text = _undelimited(text)
    if "\\" in text:
        text = _NO_SPACE.sub("", text)
        text = _BRACKETS.sub(" ", text)
        for _ in range(4):
            text, count = _DRESS.subn(_inside, text)
            if not count:
                break
    return text


def _undelimited(text: str) -> str:
    r"""A text without dollars that delimit formulas; a dollar before an amount becomes `\$`.

    A dollar is currency if a number follows, and no other dollar before words do: "$5 and $7 left".
    """
    marks = list(_DOLLARS.finditer(text))
    made: list[str] = []
    start = index = 0
    while index < len(marks):
        mark = marks[index]
        made.append(text[start : mark.start()])
        start = mark.end()
        closing = marks[index + 1] if index + 1 < len(marks) else None
        inside = text[start : closing.start()] if closing else text[start:]
        amount = mark[0] == "$" and inside[:2].lstrip()[:1].isdigit()
        if closing and not (amount and _PROSE.search(_DRESS.sub(" ", inside))):
            made.append(f" {inside} ")
            start = closing.end()
            index += 2
            continue
        made.append("\\$" if amount else " ")
        index += 1
    made.append(text[start:])
    return "".join(made)


def _inside(match: re.Match[str]) -> str:
    """A text command's content; one letter in a style of its own stays a name (a vector)."""
    content = match[1]
    if match[0].startswith("\\math") and len(content.strip()) == 1 and content.strip().isalpha():
        return match[0].replace("{", "\ue001").replace("}", "\ue002")
    return f" {content} "


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
                made.append(Token(kind="word", text=_folded(written), written=written))
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


def _folded(word: str) -> str:
    return word.lower().replace("\u2019", "'").replace(". ", ".")


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
        if written.lower() in FUNCTIONS:
            return "word" if _is_unit(text, match) else "formula"
        return "word" if _is_word(text, match) else "formula"
    return group


def _article(text: str, match: re.Match[str]) -> bool:
    """Whether a lone letter is the article or the pronoun: "a cat", "I think"."""
    after = text[match.end() : match.end() + 4]
    spaced = len(after) > 2 and after[0] == " " and after[1:3].isalpha()
    if match[0] == "A" and after[1:].strip() in ("or", "and", "is"):
        return False
    return (
        match[0] in "aAI" and spaced and text[match.start() - 1 : match.start()] in ("", " ", "\n")
    )


def _is_unit(text: str, match: re.Match[str]) -> bool:
    """Whether a function's name is a unit after a number: "20 min"."""
    after = text[match.end() : match.end() + 2].lstrip()[:1]
    counted = text[: match.start()].rstrip()[-1:].isdigit()
    return (
        match[0] in ("min", "deg") and counted and not (after.isdigit() or after in tuple("({\\^_"))
    )


def _is_word(text: str, match: re.Match[str]) -> bool:
    """Whether letters in a row are a word, not a product: nothing of a formula touches them."""
    written = match[0]
    if len(written) > 3 or not written.isascii() or written.lower() in _SHORT:
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


def relation(value: str) -> str:
    """The relation that a value begins with ("<5", "\\neq 5"), or ""."""
    match = _LEADING.match(value)
    return match[0].strip() if match and match[0].strip() in _RELATIONS else ""


_LEADING = re.compile(r"\s*(?:\\[A-Za-z]+|\S)")
