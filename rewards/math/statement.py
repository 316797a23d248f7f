r"""Which sentence of an answer block states the answer: "We add. So it is 5." is read at its end.

What follows the last "final answer is" counts. Without one it is the last sentence with a value, if
what comes before is work: it holds no value, or the last sentence concludes from it. Several bare
values on lines of their own are a list. Where something is doubted the whole block is kept, so that
the doubt is read too.
"""

from __future__ import annotations

import re

from grpo.rewards.math import hedges
from grpo.rewards.math.clauses import tokens
from grpo.rewards.math.spelling import plain

_FINAL = re.compile(r"final answer(?: is|'s)?(?: ?:)?[\s*:]*", re.IGNORECASE)
_BREAK = re.compile(
    r"\n+|(?<=[.!?;]\$)\s+(?=[A-Z])|(?<=[.!?;]\$\$)\s+(?=[A-Z])|(?<=[.!?;]\\[)\]])\s+(?=[A-Z])|(?<=[^\\][.!?;])\s+(?=[A-Z$\\*(0-9<\"'-])|(?<=[\u3002\uff01\uff1f\uff1b])"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:[ap]\.m|mr|mrs|ms|dr|st|no|vs|eq|approx|ca|sq|cu|ft|in|lb|oz|min|sec|hr|hrs|yd|mi|"
    r"[A-Za-z])\.)$",
    re.IGNORECASE,
)
_POLITE = re.compile(
    r"i hope (?:it|this|that) (?:is|helps?)(?: correct)?[.!]*|<\|[^|<>]{1,40}\|>\w*|"
    r"^(?:done|thanks|thank you|q\.?e\.?d)[.!]*$|\\blacksquare|\\square|\u25a0|\u220e",
    re.IGNORECASE,
)
_CONCLUDING = re.compile(
    r"^\W*(?:(?:so|thus|hence|therefore|then|finally|consequently|overall|altogether|in total|"
    r"answer|result|in conclusion|we (?:get|have|find|conclude)|this (?:gives|means))\b|\u2234|"
    r"\\therefore|\u56e0\u6b64|\u6240\u4ee5|\u7b54\u6848)|\b(?:answer|result|total|in all)\b",
    re.IGNORECASE,
)
_AGAIN = re.compile(
    r"\W*(?:or|no|not|actually|wait|but|alternatively|otherwise|maybe|perhaps|hmm)\b", re.IGNORECASE
)
_TRIED = re.compile(r"\banswer\b", re.IGNORECASE)
_NAMED = re.compile(r"[A-Za-z](?:_\{?\w+\}?)?\s*=[^=]*$")
MAX_SENTENCES = 400


def conclusion(block: str) -> str:
    """The sentence of an answer block that states its answer, or all of the block."""
    block = block.strip()
    if len(block) < 64 and not any(c.isspace() for c in block):
        return block
    finals = list(_FINAL.finditer(block))
    if finals and block[finals[-1].end() :].strip():
        return _stated(block[finals[-1].end() :], block)
    sentences = _sentences(block)
    if len(sentences) < 2:
        return sentences[0] if sentences else block
    held = [sum(token.kind == "value" for token in tokens(plain(s))) for s in sentences]
    last = max((i for i, count in enumerate(held) if count), default=len(sentences) - 1)
    rest = sentences[:last] + sentences[last + 1 :]
    if any(hedges.doubtful(sentence) for sentence in rest):
        return block
    concluding = _CONCLUDING.search(sentences[last]) is not None
    before = [sentence for sentence, count in zip(sentences[:last], held, strict=False) if count]
    contradicts = _TRIED.search(sentences[last]) and any(map(_TRIED.search, before))
    work = _repeats(sentences[: last + 1]) or (concluding and not contradicts)
    work = work or all(map(_is_work, before))
    return sentences[last] if work else ", ".join(s.rstrip(".;") for s in sentences)


def final_statement(text: str) -> str:
    """What a text without box or block calls its final answer, "" if it calls nothing that."""
    finals = list(_FINAL.finditer(text))
    after = text[finals[-1].end() :] if finals else ""
    return _stated(after, "") if any(c.isdigit() for c in after) else ""


def _stated(after: str, block: str) -> str:
    """The first sentence after "final answer is", unless what follows it takes it back."""
    sentences = _sentences(after)
    if not sentences:
        return block
    if any(map(_withdraws, sentences[1:])):
        return after.strip()
    return sentences[0]


def _withdraws(sentence: str) -> bool:
    """Whether a sentence after the final one doubts it, or is another answer."""
    found = tokens(plain(sentence))
    said = sum(token.kind == "word" for token in found)
    bare = said <= 3 and said < len(found)
    again = _TRIED.search(sentence) or _AGAIN.match(sentence)
    return bare or bool(again) or hedges.doubtful(sentence)


def _sentences(text: str) -> list[str]:
    """The sentences and lines of a text, without courtesies, at most the last MAX_SENTENCES."""
    found: list[str] = []
    start, depth = 0, 0
    for mark in _BREAK.finditer(text):
        depth += text.count("\\[", start, mark.start()) - text.count("\\]", start, mark.start())
        piece = text[start : mark.start()]
        if "\n" not in mark[0] and _ABBREVIATION.search(piece[-12:]):
            continue
        if piece.count("$") % 2 and not re.search(r"\$ ?[0-9]", piece):
            continue
        found.append(piece)
        start = mark.end()
    found.append(text[start:])
    kept = [_POLITE.sub("", piece).strip() for piece in found]
    return [piece for piece in kept if any(c.isalnum() for c in piece)][-MAX_SENTENCES:]


def _repeats(sentences: list[str]) -> bool:
    """Whether every sentence with a value ends with the same one: it is stated again."""
    values = [[t.text for t in tokens(plain(s)) if t.kind == "value"] for s in sentences]
    return len({each[-1] for each in values if each}) == 1


def _is_work(sentence: str) -> bool:
    """Whether a sentence is a step: an equation, or several words around its values.

    "x = 3" on a line of its own is no step: it is one of several answers.
    """
    found = tokens(plain(sentence))
    said = sum(token.kind == "word" for token in found)
    return said >= 4 or ("=" in sentence and not _NAMED.match(sentence.strip(" $*")))
