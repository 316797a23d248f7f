r"""An answer in one spelling: Unicode signs, full-width forms and LaTeX's dress as plain LaTeX.

Everything here keeps what is said: x² becomes x^{2} and not x2, ½ after a 3 stays a mixed number.
Each expression scans a text once; none of them backtracks beyond that. `undress` takes off what
surrounds an answer (emphasis, quotes, delimiters of math); `plain` leaves words beside formulas.
"""

# ruff: noqa: RUF001, RUF003

from __future__ import annotations

import re
import unicodedata

from grpo.rewards.math.exact import NO_SPACE, clean

_SLASH = "\\"
QUOTES = tuple('"“”„')
OPENING, CLOSING = "([{", ")]}"
_TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|emph|mathrm|mathbf|mathit|mathsf"
    r"|mathtt|mbox|hbox|rm|operatorname\*?) ?\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_DEGREE = re.compile(r"\^ ?\{? ?\\(?:circ|degree)s? ?\}?|\\degree|\\circ(?![A-Za-z])|\^ ?\{?°\}?")
# LaTeX's commands, each followed by the signs it stands for.
_COMMANDS = """
infty ∞  cup ∪  cap ∩  setminus ∖  emptyset ∅  le ≤⩽≦  ge ≥⩾≧  ne ≠  approx ≈  in ∈
mid ∣  land ∧  lor ∨  to →  times ×  cdot ·⋅∙•  div ÷  angle ∠  mu µμ  Omega Ω  pm ±  mp ∓  ldots …⋯
alpha α  beta β  gamma γ  delta δ  epsilon ε  theta θ  lambda λ  pi π  rho ρ  sigma σ  tau τ  phi φ
omega ω
"""
# Other signs, each before what it is written as; braces are those of a set.
_OTHERS = """
º °  − -  ﹣ -  ⁄ /  ∕ /  ′ '  、 ,  。 .  ℃ °C  ℉ °F  ｛ \\{  ｝ \\}
ℝ \\mathbb{R}  ℤ \\mathbb{Z}  ℕ \\mathbb{N}  ℚ \\mathbb{Q}  ℂ \\mathbb{C}
"""


def _pairs(table: str) -> list[tuple[str, str]]:
    words = table.split()
    return list(zip(words[::2], words[1::2], strict=True))


_SIGNS = (
    dict(_pairs(_OTHERS))
    | {"∉": "\\notin "}
    | {sign: f"\\{command} " for command, signs in _pairs(_COMMANDS) for sign in signs}
)
# Spellings within LaTeX, HTML and programs, each before its name, in the order in which they are
# replaced; ~ is a space. The peer's grammar has no angles: it would compare the last number alone.
_NAMES = r"""
\varnothing \emptyset  ** ^  \mathrm{e} e  \mathrm{i} i  \mathbb~R \mathbb{R}
\lbrace \{  \rbrace \}  \langle (  \rangle )  \lvert |  \rvert |
\cdots \ldots  \dots \ldots  ... \ldots~  \backslash \setminus  \smallsetminus \setminus
\mathcal{O} O  \cfrac \frac  \dbinom \binom  \tbinom \binom
<= \le~  >= \ge~  != \ne~  &lt; <  &gt; >  &nbsp; ~
"""
_RENAMED = [(old.replace("~", " "), new.replace("~", " ")) for old, new in _pairs(_NAMES)]
_ORDINAL = re.compile(r"(?<=[0-9]) ?\^ ?\{? ?(st|nd|rd|th)(?![A-Za-z]) ?\}?")  # 2^{nd}
_RELATION = re.compile(r"\\(le|ge|ne)(?:q(?:slant)?)?(?![A-Za-z])|\\(lt|gt)(?![A-Za-z])")
_DOUBLED = re.compile(r"\\(?=\\[A-Za-z])")  # a backslash that was escaped once too often
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_RAISED = re.compile("[⁰¹²³⁴-⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀-₉]+")
_ROOT = re.compile("([√∛∜]) ?(?:\\{([^{}]*)\\}|\\(([^()]*)\\)|([0-9]+|[A-Za-z]))")
_ROOTS = {"√": "", "∛": "[3]", "∜": "[4]"}
_FUNCTION = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|ln|log|exp)(?= ?[(^_])")
_SQRT = re.compile(r"(?<![A-Za-z\\])sqrt ?(?=[({])")
_MINUS = re.compile("^(?:minus |negative |–)(?=[0-9.\\\\])", re.IGNORECASE)
_DASH = re.compile("(?<=[(,=<>{\\[])( ?)–(?=[0-9.A-Za-z\\\\])|(?<=[A-Za-z)}]) – ")
_REALS = re.compile(r"(?:\\text\{)?all (?:real numbers|reals)\}?\.?")
_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])")
_UNION = re.compile(r"(?<=[)\]]) ?U ?(?=[(\[])")
_TIMES = re.compile(r"(?<=[0-9A-Za-z)]) ?\* ?(?=[0-9A-Za-z(\\])")
_VECTOR = re.compile(r"\\(?:bm|boldsymbol|pmb|mathbf|hat|vec) ?\{ ?(\\[ij]math|[ijk]) ?\}")
# Commands that only change how an answer looks. They go, and some take their argument with them.
_GONE = re.compile(
    r"\\(?:(?:text)?color|tag\*?|label|[hv]?phantom|hspace\*?|vspace\*?) ?\{[^{}]{0,200}\}"
    r"|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|tiny|small|normalsize|large|Large"
    r"|LARGE|huge|Huge|bf|bfseries|rm|it|boldmath|enspace|thinspace|mathstrut|strut|middle"
    r"|[bB]igg?[lrm]?)(?![A-Za-z])"
)
_STAYS = re.compile(
    r"\\(?:bm|boldsymbol|pmb|underline|mathnormal|ensuremath|fbox|boxed|mathbf)(?= ?\{)"
)


# A unit as a fraction: \frac{\text{m}}{\text{s}^2}.
_RATE = re.compile(
    r"\\[dt]?frac ?\{ ?\\(?:text|mathrm) ?\{ ?([A-Za-z]{1,12}) ?\} ?\}"
    r" ?\{ ?\\(?:text|mathrm) ?\{ ?([A-Za-z]{1,12}) ?\} ?((?:\^ ?\{?[0-9]\}?)?) ?\}"
)
_FRACTION = re.compile(r"\\frac(?![A-Za-z]) ?")
_ARGUMENT = re.compile(r"\\[A-Za-z]+|[0-9A-Za-z]")
# One sign between a set's elements and their condition, and no `if` in a cell of cases.
_SUCH_THAT = re.compile(r"(\\\{[^:|]{1,80}?) ?(?:\\mid(?![A-Za-z])|\\vert(?![A-Za-z])|\\?\|) ?")
_CELL = re.compile(
    r"[,;]? ?& ?(?:\\(?:text|mathrm|mbox) ?\{ ?(?:if|when|for|where|,)? ?(?:if|when|for)? ?\})? ?"
)
# "x = k\pi (k \in \mathbb{Z})"
_RANGING = re.compile(
    r",? ?(?:\\[ ,;] ?|\\quad ?){0,3}"
    r"(?:\\text ?\{ ?(?:for|where|with)(?: any| all| some)? ?\}|\() ?"
    r"([a-z](?: ?, ?[a-z])? ?\\in ?\\mathbb\{[A-Z]\}) ?\)?$"
)


def is_integer(text: str) -> bool:
    """Whether a text is nothing but ASCII digits, with a minus or without."""
    return text.isascii() and text.removeprefix("-").isdigit()


def closing(text: str, opens: str = OPENING, closes: str = CLOSING) -> int:
    """The index that closes the bracket at index 0, or -1."""
    depth = 0
    for index, char in enumerate(text):
        if char in opens:
            depth += 1
        elif char in closes:
            depth -= 1
            if depth == 0:
                return index
    return -1


def split(text: str, mark: re.Pattern[str]) -> list[str]:
    """The parts of a text between marks that stand outside all brackets, one part at least."""
    marks = {match.start(): match.end() for match in mark.finditer(text)}
    parts: list[str] = []
    depth, start = 0, 0
    for index, char in enumerate(text) if marks else ():
        if char in OPENING:
            depth += 1
        elif char in CLOSING:
            depth -= 1
        elif depth == 0 and index in marks:
            parts.append(text[start:index].strip())
            start = marks[index]
    return [*parts, text[start:].strip()]


def respell(text: str) -> str:
    """An answer in LaTeX's spelling: Unicode signs, `pi`, `**` and `*` as its names."""
    if is_integer(text):
        return text
    if text[:1] in QUOTES and text[-1:] in QUOTES:
        text = text[1:-1].strip()
    if text.startswith("**") and text.endswith("**"):  # Markdown's bold
        text = text.strip("*")
    if _REALS.fullmatch(text):
        return "(-\\infty,\\infty)"
    if not text.isascii():
        text = _from_unicode(text)
    for old, new in _RENAMED:
        text = text.replace(old, new)
    if "\\" in text:
        if "\\begin" not in text:
            text = _DOUBLED.sub("", text)
        text = _RELATION.sub(lambda m: f"\\{m[1]} " if m[1] else "<" if m[2] == "lt" else ">", text)
        text = _VECTOR.sub(lambda m: f"\\vec{{{m[1].removeprefix(_SLASH)[0]}}}", text)
        text = _STAYS.sub("", _GONE.sub(" ", text))
        text = _one_dress(text)
    if "pi" in text:
        text = _PI.sub(r"\\pi ", text)
    if "o" in text or "inf" in text:
        text = _INFINITY.sub(r"\\infty ", text)
    if "U" in text:
        text = _UNION.sub(r" \\cup ", text)
    text = _MINUS.sub("-", _FUNCTION.sub(r"\\\1", text))
    for match in reversed(list(_SQRT.finditer(text))):
        start = match.end()
        end = start + closing(text[start:])
        if end > start:
            inner = text[start + 1 : end]
            text = f"{text[: match.start()]}\\sqrt{{{inner}}}{text[end + 1 :]}"
    return _TIMES.sub(r" \\cdot ", text) if "*" in text else text


def _from_unicode(text: str) -> str:
    """Signs by their names; raised and lowered ones, fractions, digits and letters by rule."""
    text = "".join(map(_sign, text)) if len(text) <= 4096 else text
    text = _VULGAR.sub(_fraction, text)
    text = _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = _LOWERED.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = text.replace("−", "-")  # what a raised minus becomes
    text = _ROOT.sub(lambda m: f"\\sqrt{_ROOTS[m[1]]}{{{m[2] or m[3] or m[4]}}}", text)
    return _DASH.sub("-", text)


def _sign(char: str) -> str:
    if char < "\x80":
        return char
    if name := _SIGNS.get(char):
        return name
    if unicodedata.category(char) == "Nd":  # ٥, ５, and the digits of every other script
        return str(unicodedata.digit(char))
    if "\uff01" <= char <= "\uff5e" or char == "\u3000":  # full width
        return chr(ord(char) - 0xFEE0) if char != "\u3000" else " "
    if "\U0001d400" <= char <= "\U0001d7ff" or "\u3371" <= char <= "\u33df":  # italics, squared cm
        return unicodedata.normalize("NFKC", char)
    return char


def _fraction(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def _one_dress(text: str) -> str:
    """Sets, cases and "(k in Z)" as they are written most often."""
    if text.startswith("\\{") and (text.count("|") == 1 or "\\mid" in text or "\\vert" in text):
        text = _SUCH_THAT.sub(r"\1 : ", text, count=1)
    if "\\begin" in text:
        text = _CELL.sub(" & ", text)
    return _RANGING.sub(r", \1", text) if "\\mathbb" in text[-24:] else text


def _braced(text: str) -> str:
    r"""\frac\pi2, \frac1x and \frac{\pi}2 with both arguments in braces."""
    opened: list[int] = []
    ends: dict[int, int] = {}
    for index, char in enumerate(text):
        if char == "{":
            opened.append(index)
        elif char == "}" and opened:
            ends[opened.pop()] = index + 1
    marks: list[tuple[int, str]] = []
    for match in _FRACTION.finditer(text):
        start = match.end()
        for _ in range(2):
            start += text.startswith(" ", start)
            end = ends.get(start)
            if end is None:
                argument = _ARGUMENT.match(text, start)
                if not argument:
                    break
                end = argument.end()
                end = ends.get(end, end) if argument[0] == "\\sqrt" else end
                marks += [(start, "{"), (end, "}")]
            start = end
    made, last = "", 0
    for index, mark in sorted(marks, key=lambda found: found[0]):
        made, last = made + text[last:index] + mark, index
    return made + text[last:]


def normalize(text: str) -> str:
    r"""An answer without what never matters: delimiters, `\text`, sizes, outer braces, spacing."""
    if is_integer(text):
        return text
    text = clean(text)
    if text.count("$") % 2 == 0:  # an odd one is a currency
        text = text.replace("$", " ")
    if "\\" in text:
        text = _DEGREE.sub("°", _TEXT.sub(r" \1 ", _RATE.sub(r" \1/\2\3", text)))
        text = text.replace("\\%", "%").replace("\\$", "$")
        if "\\frac" in text:
            text = _braced(text)
        text = re.sub(r"\\frac ?\{ ?([^{} ]+) ?\} ?\{ ?([^{} ]+) ?\}", r"\\frac{\1}{\2}", text)
    text = _ORDINAL.sub(r"\1", " ".join(text.split()))
    while text.startswith("{") and closing(text) == len(text) - 1:
        text = text[1:-1].strip()
    if text.startswith("{") and closing(text) < 0:  # a brace that was never closed
        text = text[1:].strip()
    if text.endswith((".", ",", ";")) and not text.endswith(".."):
        text = text[:-1].rstrip(" ,;")
    return text


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
