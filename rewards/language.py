"""Language consistency: the share of the thought that is written in the target language.

R1's language reward (2501.12948, section 2.3.2) with the parts that are not language taken out:
code, LaTeX, URLs, numerals and single letters. A word counts by its Unicode script, and in Han,
Kana and Hangul every character is a word. Scripts cannot tell English from French: `identify` adds
an identifier (py3langid) for that, within one script only.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from grpo.errors import PluginError, RewardError, unknown_name
from grpo.rewards.extract import split_thought
from grpo.rewards.verifier import GradedReward
from grpo.types import Score, Task

# The Unicode scripts of languages (ISO 639-1).
_LANGUAGES = {
    "en fr de es it pt nl pl cs sv da fi no ro hu tr vi id": ("LATIN",),
    "ru uk bg sr": ("CYRILLIC",),
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "ar fa": ("ARABIC",),
    "he": ("HEBREW",),
    "el": ("GREEK",),
    "hi": ("DEVANAGARI",),
    "th": ("THAI",),
}
_SCRIPTS = {name: scripts for names, scripts in _LANGUAGES.items() for name in names.split()}
_BY_CHARACTER = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL")
# An opening mark that is never closed must not cost a scan of the whole text: spans are bounded, or
# end where the next one opens.
_FORMULA = (
    r"\$\$[^$]*\$\$|\$[^$\n]*\$"
    r"|\\\((?:(?!\\\()[^\n]){0,2000}?\\\)|\\\[(?:(?!\\\[).){0,2000}?\\\]|\\[A-Za-z]+|</?\w{1,32}>"
)
# A letter that is not ASCII belongs to an address where a mark stands before its run of them.
_IN_ADDRESS = r"(?:[!-~]|(?<=[/=?&#%._:@~+-])[^\W_]+)"
_DOMAINS = "com|org|net|edu|gov|info|io|ai|dev|app|cn|jp|kr|tw|hk|de|fr|uk|ru|eu|us|co|me"
_CODE = (
    r"```.*?(?:```|\Z)|``[^`\n]+``|`[^`\n]*`|<code>[^<]*</code>"
    rf"|(?:https?|ftp|file)://{_IN_ADDRESS}+|www\.{_IN_ADDRESS}+"
    rf"|(?<![\w.@-])(?:[\w-]{{1,63}}\.){{1,4}}(?:{_DOMAINS})(?![\w-])(?:/{_IN_ADDRESS}*)?"
    r"|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}"
    r"|(?<!\w)(?:[A-Za-z]:[\\/]|~/|\.{1,2}/|/(?=[\w.-]{1,64}/))[\w.-]{1,64}(?:[\\/][\w.-]{0,64}){0,32}"
    r"|(?<![\w/])[\w-]{1,64}(?:/[\w-]{1,64}){1,16}\.[A-Za-z0-9]{1,5}(?!\w)"
)
_NOT_LANGUAGE = re.compile(f"(?P<code>{_CODE})|{_FORMULA}", re.DOTALL)
_NAME_IN_FORMULA = re.compile(r"\\(?:text\w*|math\w+|operatorname|mbox) ?\{[^{}\\$]*\}")
# Letters that code and formulas are written in; any other letter inside them is language.
_TECHNICAL = re.compile("[\0-\u03ff\u1e00-\u2bff\U0001d400-\U0001d7ff]+")
# Text of another script in code and addresses is no language, up to this many words for each one
# outside of them: a thought that is written between marks is one all the same.
_MOST_INSIDE = 5


@lru_cache(maxsize=1 << 16)
def script_of(char: str) -> str:
    """The Unicode script of a letter ("LATIN", "CJK", …), "" for anything else."""
    if not char.isalpha():
        return ""
    first = unicodedata.name(char, "").split(" ")[0].removesuffix("-JAMO")
    return {"IDEOGRAPHIC": "CJK", "FULLWIDTH": "LATIN", "HALFWIDTH": "KATAKANA"}.get(first, first)


def language_of(text: str) -> tuple[str, str]:
    """(text outside code, formulas, addresses and tags; text of other scripts inside code).

    Chinese between two dollars counts as outside, except in names such as `\\text{面积}`.
    """
    inside: list[str] = []

    def replaced(span: re.Match[str]) -> str:
        if span["code"] is not None:
            inside.append(_TECHNICAL.sub(" ", span[0]))
            return " "
        inside.extend(_TECHNICAL.sub(" ", name) for name in _NAME_IN_FORMULA.findall(span[0]))
        return _TECHNICAL.sub(" ", f" {_NAME_IN_FORMULA.sub(' ', span[0])} ")

    outside = _NOT_LANGUAGE.sub(replaced, text)
    return outside, " ".join(inside)


def words_by_script(text: str) -> Counter[str]:
    """Number of words per script after everything that is not language is taken out."""
    outside, inside = map(_counted, language_of(text))
    hidden = sum(inside.values()) > _MOST_INSIDE * sum(outside.values())
    return outside + inside if hidden else outside


def _counted(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    script, length = "", 0
    for char in text + " ":
        # Marks (accents, vowel signs) belong to the word they stand in.
        mark = script and unicodedata.category(char).startswith("M")
        here = script if mark else script_of(char)
        if here != script or here in _BY_CHARACTER:
            if script and (length > 1 or script in _BY_CHARACTER):
                found[script] += 1
            script, length = here, 0
        length += 1
    return found


class LanguageConsistency(GradedReward):
    """Words of the thought in the target language / words of the thought, in [0, 1].

    language: ISO 639-1 code; a row's `language` column overrides it. An empty thought is 0; one
    with fewer than min_words words of any language is not_applicable. Without a `</think>` the
    whole completion is taken.
    """

    name = "language_consistency"

    def __init__(self, language: str = "en", min_words: int = 3, identify: bool = False) -> None:
        if language not in _SCRIPTS:
            raise PluginError(unknown_name("language", language, _SCRIPTS))
        self.language = language
        self.min_words = min_words
        self.identify = identify

    def grade(self, text: str, ids: Sequence[int] | None, task: Task) -> Score:
        """scored, not_applicable (too little text) or unparseable_gold (unknown language)."""
        language = str(task.columns.get("language") or self.language)
        language = language.replace("_", "-").partition("-")[0].lower()  # en-US is English
        if language not in _SCRIPTS:
            return Score(value=None, status="unparseable_gold", detail=f"language {language!r}")
        thought, answer = split_thought(text)
        if answer is not None and "</think>" not in text:
            thought = answer
        thought = thought.replace("<think>", " ")
        if not thought.strip():
            return Score(value=0.0, status="scored", detail="empty thought")
        words = words_by_script(thought)
        total = sum(words.values())
        if total < self.min_words:
            return Score(value=None, status="not_applicable", detail=f"{total} words")
        share = sum(words[script] for script in _SCRIPTS[language]) / total
        if self.identify and share > 0:
            named = identified(thought, language)
            if named != language:
                return Score(value=0.0, status="scored", detail=f"identified as {named}")
        return Score(value=share, status="scored", detail=f"{share:.0%} of {total} words")


def identified(text: str, language: str) -> str:
    """The most likely language among those written in the same script as `language`."""
    try:
        langid: Any = importlib.import_module("py3langid.langid")
    except ImportError as error:
        raise RewardError("language_consistency: identify needs `pip install py3langid`") from error
    peers = [name for name, scripts in _SCRIPTS.items() if scripts == _SCRIPTS[language]]
    identifier = langid.LanguageIdentifier.from_pickled_model(langid.MODEL_FILE)
    identifier.set_languages(peers)
    return str(identifier.classify(language_of(text)[0])[0])
