r"""What only dresses an answer: emphasis, quotes, `\text`, delimiters of math, escapes.

`undress` takes off what surrounds an answer; `plain` leaves words beside formulas.
"""

from __future__ import annotations

import re

from grpo.rewards.math.exact import NO_SPACE
from grpo.rewards.math.spelling import closing

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
_BRACKETS = re.compile(r"\\[()\[\]]")
# GSM8K's notes for a calculator: "9 * 2 = $<<9*2=18>>18"
_NOTE = re.compile(r"<<[^<>A-Za-z\n]{1,200}>>")
_PROSE = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}\s+[A-Za-z]{2,}|(?<![\\A-Za-z])[A-Za-z]{4,}")


def undress(text: str) -> str:
    r"""A text without Markdown's emphasis, quotes around it, and headings' signs."""
    text = _NOTE.sub("", text) if "<<" in text else text
    text = text.strip().rstrip("\u2705\u2713\u2714\ufe0f").strip()
    if text.isalnum():
        return text
    if "\\\\" in text:
        text = _TWICE.sub(r"\\", text)
    text = text[:-1] if text.endswith("$.") else text
    text = _COMMA_LAST.sub(r"\1\2", text)
    if text.startswith("$") and text.endswith("$") and len(_DOLLARS.findall(text)) == 2:
        text = text.strip("$").strip() if not text.endswith("\\$") else text
    while text.startswith("{") and closing(text, "{", "}") == len(text) - 1:
        text = text[1:-1].strip()
    if any(c in text for c in "*_`"):
        for _ in range(2):
            text = _EMPHASIS.sub(lambda m: m[2] or m[4] or m[5] or "", text)
    text = text.lstrip("#").strip() if text.startswith("#") else text
    for first, last in (("\u201c", "\u201d"), ('"', '"'), ("\u2018", "\u2019"), ("``", "''")):
        if len(text) > 2 and text.startswith(first) and text.endswith(last):
            text = text[len(first) : -len(last)].strip()
    return text


def plain(text: str) -> str:
    r"""A text without delimiters of math and without `\text`: words beside formulas."""
    if "$" in text:
        text = _undelimited(text)
    if "\\" in text:
        text = NO_SPACE.sub("", text)
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
