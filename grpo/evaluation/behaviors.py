"""What reasoning looks like in completions: words of reflection per group, and scripts in a mix.

R1 reports how often words of reflection occur in its thoughts during training (arXiv 2501.12948,
"aha moment"). Such counts describe the text and prove nothing: a model can write "let me check" and
check nothing. Read them beside accuracy and length, not instead of them. The lists are English;
other languages show in the language mix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from grpo.rewards.language import words_by_script

# Every form is listed, so that a count can be repeated with a text editor. Case does not matter; a
# form stands between word boundaries. Where several forms match at one place, the longest counts.
_FORMS = {
    "wait": "wait, hmm, hold on",
    "check": "check, checks, checking, checked, double-check, double check, double-checking, "
    "sanity check, recheck, rechecking, re-check",
    "verify": "verify, verifies, verified, verifying, verification, confirm, confirms, "
    "confirming, make sure",
    "alternatively": "alternatively, another way, another approach, a different approach, "
    "a different way, on second thought",
    "let me": "let me, let's, let us",
    "backtrack": "try again, start over, start again, go back, going back, that's wrong, "
    "that is wrong, that's not right, that is not right, that can't be right, doesn't work, "
    "does not work, mistake, mistakes, scratch that, correct myself",
}
BEHAVIORS: Mapping[str, tuple[str, ...]] = {
    name: tuple(forms.split(", ")) for name, forms in _FORMS.items()
}


def _pattern(forms: Iterable[str]) -> re.Pattern[str]:
    longest = sorted(forms, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.IGNORECASE)


_PATTERNS = {name: _pattern(forms) for name, forms in BEHAVIORS.items()}


def counts(text: str) -> dict[str, int]:
    """How often each group of `BEHAVIORS` occurs in the text."""
    plain = text.replace("\u2019", "'")  # a typographic let's
    return {name: len(pattern.findall(plain)) for name, pattern in _PATTERNS.items()}


def summarize(texts: Iterable[str]) -> dict[str, Any]:
    """Behaviors and language mix of many completions, ready for JSON.

        behaviors  group -> {"share": of completions with it, "per_1000_words": of all words}
        scripts    script -> share of all words written in it, most frequent first
        words      all words (two letters or more; in Han, Kana and Hangul each character)

    Code, formulas and addresses hold no words. Without any word, per_1000_words is None.
    """
    having: Counter[str] = Counter()
    total: Counter[str] = Counter()
    scripts: Counter[str] = Counter()
    completions = 0
    for text in texts:
        completions += 1
        found = counts(text)
        total.update(found)
        having.update(name for name, count in found.items() if count)
        scripts.update(words_by_script(text))
    words = sum(scripts.values())
    return {
        "behaviors": {
            name: {
                "share": having[name] / completions if completions else 0.0,
                "per_1000_words": 1000 * total[name] / words if words else None,
            }
            for name in BEHAVIORS
        },
        "scripts": {name: count / words for name, count in scripts.most_common()},
        "words": words,
    }
