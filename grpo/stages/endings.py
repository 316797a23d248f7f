"""How a completion ends: eos ids and stop strings, checked before anything is sampled."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Collection
from typing import Any

from grpo.config.schema import Rollout
from grpo.errors import RecipeError
from grpo.model import pretrained
from grpo.outside.templates.chat_templates import turn_end
from grpo.types import Sampling

logger = logging.getLogger(__name__)

# A tag that rewards look for, as in <answer>…</answer>: it stays in the text that it ends.
_CLOSING_TAG = re.compile(r"</[^<>/|]+>")

_SHOWN = 24  # characters of what a template writes after an answer


def sampling_of(
    rollout: Rollout, tokenizer: Any, model_path: str, *, text_only: bool = False
) -> Sampling:
    """The recipe's sampling; a completion ends at any eos of tokenizer or generation config.

    A stop string that is a special token becomes an eos, which is not part of the text. A closing
    tag (`</answer>`) stays a stop string and part of the text. With `text_only` or an endpoint all
    stay stop strings, since the answers have no ids. Raises RecipeError where a completion could
    never end, or a stop string could never be sampled.
    """
    size = vocab_size(model_path)
    eos = set(end_ids(tokenizer, model_path, size))
    stop: list[str] = []
    for word in rollout.stop:
        if not word:
            raise RecipeError(
                "rollout.stop has an empty string, which every text holds; leave it out"
            )
        special = special_id(tokenizer, word)
        if special is not None and special >= size:
            raise RecipeError(
                f"rollout.stop = {word!r} is token {special}, but the model has embeddings for "
                f"{size} tokens only and can never write it; resize its embeddings, or leave it out"
            )
        if special is None or _CLOSING_TAG.fullmatch(word):
            stop.append(word)
        elif text_only or rollout.engine == "endpoint":
            logger.warning(
                "rollout.stop = %r is a special token, which servers leave out of their text: "
                "completions end where the server ends them",
                word,
            )
            stop.append(word)
        else:
            eos.add(special)
    return Sampling(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        min_p=rollout.min_p,
        max_tokens=rollout.longest_completion,
        stop=tuple(stop),
        eos_ids=tuple(sorted(eos)),
    )


def end_ids(tokenizer: Any, model_path: str, size: int) -> list[int]:
    """Every eos id that a model of `size` tokens can write. Raises RecipeError where there is none.

    They come from the tokenizer and the generation config, or the model's config if it has none.
    """
    found = ({tokenizer.eos_token_id} | _declared(model_path)) - {None}
    outside = sorted(i for i in found if not 0 <= i < size)
    said = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in outside)
    if len(outside) == len(found):
        why = f"neither the tokenizer nor the configuration of {model_path} names an eos token"
        if outside:
            why = (
                f"the eos of {model_path} is {said}, but the model has tokens 0 to {size - 1} only"
            )
        raise RecipeError(
            f"{why}, so a completion could never end: name one that it has as eos_token_id in "
            "generation_config.json or eos_token in tokenizer_config.json, or resize its embeddings"
        )
    if outside:
        logger.warning(
            "%s: eos %s ends nothing: the model has tokens 0 to %d only", model_path, said, size - 1
        )
    return sorted(found - set(outside))


def check_trained_eos(tokenizer: Any, model_path: str) -> None:
    """Refuse to teach an eos that the model has no embedding for. Raises RecipeError."""
    size, own = vocab_size(model_path), tokenizer.eos_token_id
    if own is None or own >= size:
        what = (
            "names no eos token" if own is None else f"has the eos {tokenizer.eos_token!r}, {own}"
        )
        but = "" if own is None else f", but the model has embeddings for {size} tokens only"
        raise RecipeError(
            f"the tokenizer of {model_path} {what}{but}: a row could not end; set eos_token in its "
            "tokenizer_config.json to a token that it has, or resize the embeddings"
        )


def warn_of_turn_end(
    tokenizer: Any, eos_ids: Collection[int], stop: Collection[str] = (), *, taught: bool = False
) -> None:
    """Warn where the chat template ends a turn with something that does not end a completion.

    taught: whether the completions are training rows, each followed by an eos.
    """
    end = turn_end(tokenizer)
    ids = tokenizer.encode(end, add_special_tokens=False) if end else []
    if not ids or not set(eos_ids).isdisjoint(ids) or any(word in end for word in stop):
        return
    first = str(tokenizer.convert_ids_to_tokens(ids[0]))
    special = end.startswith(first) and special_id(tokenizer, first) is not None
    word = first if special else end[:_SHOWN]
    eos = " or ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in sorted(eos_ids))
    what = "is no eos of the model" if special else "is plain text to the tokenizer, and no eos"
    then = f"completions end with {eos} only and go on after it; name it in rollout.stop"
    if taught:
        then = f"rows are taught to end with {eos}"
    logger.warning(
        "the chat template ends a turn with %r, which %s: %s, or make it the eos_token of the "
        "tokenizer",
        word,
        what,
        then,
    )


def special_id(tokenizer: Any, word: str) -> int | None:
    """The id of the special token that is written `word`; None where there is none."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    for number, token in added.items():
        if str(token) == word and token.special:
            return int(number)
    named = getattr(tokenizer, "all_special_tokens", ())
    return int(tokenizer.convert_tokens_to_ids(word)) if word in named else None


def vocab_size(model_path: str) -> int:
    """Tokens that the model has embeddings for. Raises RecipeError where there is no such model."""
    return int(getattr(pretrained.text_config(model_path), "vocab_size", None) or sys.maxsize)


def _declared(model_path: str) -> set[int]:
    # Not every model has a generation config; transformers then goes by the config.
    found = pretrained.generation_config(model_path) or pretrained.text_config(model_path)
    declared: Any = getattr(found, "eos_token_id", None)
    return set(declared if isinstance(declared, list) else [declared]) - {None}
