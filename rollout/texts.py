"""From token ids to the text that rewards see: one way for every engine.

Everything that was sampled is in the text, special tokens too: `<think>` and `<answer>` are special
tokens in many vocabularies, and a reward that looks for them has to find them. Left out are the
end-of-sequence token with which a completion ended, where it is a special token, and those that
stand for no text at all, the tokenizer's bos and pad. Text that was cut at a stop string ends with
that string.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def completion_text(tokenizer: Any, ids: Sequence[int], eos_ids: Sequence[int]) -> str:
    """The text of `ids`, all but bos, pad and an eos at their end that is a special token.

    `tokenizer` needs `decode(ids, skip_special_tokens=...)`.
    """
    silent = {getattr(tokenizer, name, None) for name in ("bos_token_id", "pad_token_id")}
    kept = [i for i in ids if i not in silent]
    if kept and kept[-1] in eos_ids and not tokenizer.decode(kept[-1:], skip_special_tokens=True):
        kept.pop()
    return str(tokenizer.decode(kept, skip_special_tokens=False))


def cut(text: str, stop: Sequence[str]) -> str | None:
    """The text up to and with the first stop string to end in it; None where there is none."""
    ends = [text.index(word) + len(word) for word in stop if word in text]
    return text[: min(ends)] if ends else None


def whole_characters(text: str) -> str:
    """Text of a foreign server with halves of surrogate pairs replaced: UTF-8 cannot hold them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
