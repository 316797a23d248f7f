"""Foreign text as it may stand on a terminal: what models, files, servers and names say.

A terminal obeys what it is sent. An escape sequence sets its title or its clipboard (OSC 52),
clears it or makes it answer as if someone typed. A carriage return overwrites a line. Bidirectional
controls show other words than there are ("Trojan Source", CVE-2021-42574), and characters without
width hide some. Each of them is written out as Python's `ascii` does, `\\x1b` or `\\u202e`, one by
one, so that a sequence that comes in pieces does not get through either.

Passwords and keys are taken out as well (`redacted`): other people than the one who typed them read
what is shown, or written into a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

# Categories Cc (but newline and tab), Cf, Cs, Zl and Zp of Unicode 16, which are control, format
# (without width, direction, tags), lone surrogates and separators of lines and paragraphs; and what
# else Unicode says may be ignored (Default_Ignorable_Code_Point), but the selectors of emoji.
_UNPRINTABLE = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2"
    "\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_FORBIDDEN = re.compile(f"[{_UNPRINTABLE}]")

# What joins the parts of an emoji, and joins or parts letters of Arabic and Indic scripts, hides
# nothing there; between other characters it does.
_PICTURES = "\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff"
_JOINED = "\u0620-\u06d3\u06ee-\u08c7\u0900-\u0dff"
_IN_WORDS = {
    "\u200c": re.compile(f"[{_JOINED}].[{_JOINED}]"),
    "\u200d": re.compile(f"[{_PICTURES}\ufe0f].[{_PICTURES}]|[{_JOINED}].[{_JOINED}]"),
}

HIDDEN = "***"
_NAME = (
    r"(?:api|access|secret|private)[_-]?key|(?:client[_-]?)?secret|password|passwd"
    r"|(?:access|auth|hf|hub|bearer|refresh|session|security)[_-]?token"
)
_IS_NAME = re.compile(rf"(?i)(?:.{{0,64}}[^a-z0-9])?(?:{_NAME}|authorization)")
# Every repetition is bounded or ends where the next one cannot begin: the scan is linear.
_VALUE = r"[^\s'\",;&}\])]"
# What a word of a sentence is not.
_LIKE_A_KEY = rf"(?:(?={_VALUE}{{6}})(?={_VALUE}{{0,256}}?\d)|(?={_VALUE}{{16}}))"
_NO_VALUE = r"(?!(?:none|null|nil|true|false)\b)"
# In each pattern the first group stays, and what follows it is hidden.
_CERTAIN = (
    # scheme://user:password@host
    re.compile(r"(://)[^\s/?#'\"]{1,512}(?=@)"),
    # https://host/?token=KEY
    re.compile(rf"(?i)([?&](?:token|key|sig|signature|auth|pw|pwd|{_NAME})=)[^\s&#'\"]+"),
    # of Hugging Face, and not a folder's name like hf_llama3_8b_instruct
    re.compile(
        r"(?<![A-Za-z0-9_-])(hf_)(?:(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{16,}|[A-Za-z0-9]{20,})"
        r"(?![A-Za-z0-9_-])"
    ),
    # of OpenAI and Anthropic, GitHub, Slack, Amazon
    re.compile(
        r"(?<![A-Za-z0-9_-])(sk-|gh[oprsu]_|github_pat_|xox[abps]-|AKIA)"
        r"(?=[A-Za-z_-]{0,64}\d|[A-Za-z0-9]{16})[A-Za-z0-9_-]{12,}"
    ),
)
_LIKELY = (
    # Authorization: Bearer KEY
    re.compile(
        r"(?i)(authorization['\"]?\s{0,4}[=:]\s{0,4}['\"]?(?:bearer|basic|token)\s{1,4})"
        rf"{_VALUE}+"
    ),
    re.compile(r"(?i)\b(bearer\s{1,4})(?=[^\s'\"]{0,512}\d)[\w.~+/=-]{12,}"),
    # api_key=KEY, "password": "KEY"
    re.compile(
        rf"(?i)(?<![a-z0-9])((?:{_NAME})(?:=|['\"]?\s{{0,4}}[=:]\s{{0,4}}['\"])){_NO_VALUE}{_VALUE}+"
    ),
    # X-Api-Key: KEY, Authorization: KEY, --api-key KEY
    re.compile(
        rf"(?i)(?<![a-z0-9])((?:{_NAME}|authorization)\s{{0,4}}[=:]\s{{0,4}}){_LIKE_A_KEY}{_VALUE}+"
    ),
    re.compile(rf"(?i)(--(?:\w{{1,32}}-)?(?:{_NAME})\s{{1,4}}['\"]?){_LIKE_A_KEY}[^\s'\"]+"),
)
_MARKS = re.compile(
    r"(?i)://|[=:]|key|secret|token|pass|bearer|basic|hf_|sk-|gh[oprsu]_|pat_|xox|AKIA"
)


def printable(text: str, *, width: int | None = None) -> str:
    """`text` with every character written out that a terminal would obey or hide.

    Newline and tab stay as they are. width: the most characters; the end of what is longer is "…".
    """
    shown = _FORBIDDEN.sub(_written_out, text)
    return shown if width is None or len(shown) <= width else shown[: max(0, width - 1)] + "…"


def shown(text: str) -> str:
    """`text` for people: printable, and without passwords and keys."""
    return printable(redacted_text(text))


def json_printable(text: str, encoding: str = "utf-8") -> str:
    """A text of JSON with the same values, every such character an escape of JSON.

    Only strings of JSON can hold them, so the data stays exact. encoding: what cannot be written
    in it is escaped as well.
    """
    text = _FORBIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return "".join(c if c.isascii() else json.dumps(c)[1:-1] for c in text)
    return text


def redacted_text(text: str, *, certain: bool = False) -> str:
    """`text` with passwords and keys replaced by ***.

    Known by their place (user:password@ of an address, ?token=) or by how keys of well-known
    services begin; and, unless `certain`, by the words before them (`api_key=`, `Authorization:`),
    which prose may have too. Anything else is not known to be one.
    """
    if not _MARKS.search(text):
        return text
    for pattern in _CERTAIN if certain else (*_CERTAIN, *_LIKELY):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text


def redacted(value: Any, *, certain: bool = False) -> Any:
    """Plain data with passwords and keys replaced in every text, and under keys that name them."""
    if isinstance(value, str):
        return redacted_text(value, certain=certain)
    if isinstance(value, Mapping):
        entries = cast("Mapping[Any, Any]", value).items()
        return {
            key: HIDDEN if _hides(key, item) else redacted(item, certain=certain)
            for key, item in entries
        }
    if isinstance(value, list | tuple):
        items = cast("list[Any] | tuple[Any, ...]", value)
        return type(items)(redacted(item, certain=certain) for item in items)
    return value


def redacted_command(words: list[str]) -> list[str]:
    """The words of a command line; a password may be a word of its own, behind its option."""
    return [
        HIDDEN if before.startswith("--") and _IS_NAME.fullmatch(before) else redacted_text(word)
        for before, word in zip(["", *words], words, strict=False)
    ]


def _hides(key: Any, value: Any) -> bool:
    named = isinstance(key, str) and _IS_NAME.fullmatch(key) is not None
    return named and isinstance(value, str) and value != ""


def _written_out(found: re.Match[str]) -> str:
    in_words = _IN_WORDS.get(found[0])
    if in_words and in_words.fullmatch(found.string[max(0, found.start() - 1) : found.end() + 1]):
        return found[0]
    return ascii(found[0])[1:-1]
