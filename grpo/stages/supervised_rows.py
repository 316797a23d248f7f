"""Read, render and mix the prompt-completion rows of the supervised stages.

A row's prompt is rendered by the template of the rl stage (`grpo/data/prompts.py`), and its
completion is tokenized by itself. In fine-tuning a model therefore reads the same ids as in
sampling, and the mask is exact even where a tokenizer would merge across the border.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grpo.data.conversation import template_columns
from grpo.data.files import read_rows as read_file
from grpo.data.prompts import PromptTemplate
from grpo.data.published import load_rows
from grpo.data.source import stable_hash
from grpo.errors import DataError
from grpo.outside.code import objects
from grpo.outside.rows.columns import Row, checked_prompt, column, message_text
from grpo.outside.terminal.console import Console
from grpo.types import Message, Task

SHARD = "train.jsonl"  # the rows of a folder `data/`


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRow:
    """A prompt and what should follow it; `place` says where it was read, for messages."""

    place: str
    prompt: str | list[Message]
    completion: str
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of the chat template


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRow:
    """A row as token ids. `ids` is the completion with its eos; all of them are trained on."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.ids)


def read_rows(path: str) -> list[TextRow]:
    """Rows of files (`grpo/data/files.py`), of a stage's folder `data`, or of the hub.

    Raises DataError with file and line for an empty file, a missing column, a wrong type.
    """
    rows = [_text_row(place, row) for place, row in _open(path)]
    if not rows:
        raise DataError(f"data {path!r} holds no rows")
    return rows


def encode(
    rows: Sequence[TextRow],
    template: PromptTemplate,
    max_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[TokenRow], int]:
    """Rows as ids, and how many were dropped because they have more than `max_length` tokens.

    If a completion begins with the template's prefill (say "<think>\\n"), the prefill is not
    repeated. Raises DataError if a row cannot be written in the model's tokens, or none is short
    enough.
    """
    found: list[TokenRow] = []
    shortest = 0
    for done, row in enumerate(rows, 1):
        encoded = _encode(row, template)
        if encoded is not None and len(encoded) <= max_length:
            found.append(encoded)
        elif encoded is not None:
            shortest = min(shortest or len(encoded), len(encoded))
        if progress is not None and done % 100 == 0:
            progress(done, len(rows))
    if not found:
        raise DataError(
            f"learner.max_length = {max_length} leaves none of the {len(rows)} rows of "
            f"{rows[0].place.rpartition(':')[0] or rows[0].place}: the shortest has {shortest} "
            "tokens; raise it, or give shorter rows"
        )
    return found, len(rows) - len(found)


def check_encodable(
    some: Sequence[TextRow], rows: Sequence[TextRow], template: PromptTemplate, max_length: int
) -> None:
    """Raise what `encode` would raise for `some` of the rows or for the shortest of all."""
    for row in some:
        _encode(row, template)
    shortest = min(rows, key=lambda row: len(str(row.prompt)) + len(row.completion))
    encoded = _encode(shortest, template)
    if encoded is not None and len(encoded) > max_length:
        encode(rows, template, max_length)  # is none of them short enough?


def encode_sets(
    sets: Mapping[str, Sequence[TextRow]],
    template: PromptTemplate,
    max_length: int,
    console: Console,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, list[TokenRow]], int]:
    """`encode` every set; returns the rows and how many were dropped, which is also printed."""
    found: dict[str, list[TokenRow]] = {}
    dropped = 0
    for name, rows in sets.items():
        found[name], overlong = encode(rows, template, max_length, progress)
        dropped += overlong
    if dropped:
        console.print(f"{dropped} rows of more than {max_length} tokens were dropped", markup=False)
    return found, dropped


def mix(
    main: Sequence[TokenRow], others: Mapping[str, tuple[float, Sequence[TokenRow]]], seed: int
) -> tuple[list[TokenRow], dict[str, int]]:
    """All of `main` and, of each other set, as many rows as make up its share of the whole.

    others: name -> (share of all training rows, rows). Rows are drawn by `seed`; no row is drawn
    twice before each was drawn once. Returns the rows in a drawn order, and the number of rows from
    each other set.
    """
    whole = len(main) / (1.0 - sum(share for share, _ in others.values()))
    rows = list(main)
    counts: dict[str, int] = {}
    for name, (share, candidates) in others.items():
        counts[name] = round(share * whole)
        drawn = draw(len(candidates), counts[name], stable_hash("mix", seed, name))
        rows += [candidates[i] for i in drawn]
    if not others:
        return rows, counts
    return [rows[i] for i in draw(len(rows), len(rows), stable_hash("mix", seed))], counts


def draw(population: int, count: int, seed: int) -> list[int]:
    """`count` indices below `population`: one permutation after another, the last one cut."""
    found: list[int] = []
    for turn in range(-(-count // population)):
        found += np.random.default_rng([seed, turn]).permutation(population).tolist()
    return found[:count]


def _open(path: str) -> list[tuple[str, Row]]:
    if objects.is_object(path):
        return objects.find("data", path).rows
    place = Path(path).expanduser()
    if (place / SHARD).is_file():  # beside a card and the like
        return read_file(place / SHARD)
    # A hub id has one slash and no ending; anything else is meant as a file.
    if place.exists() or place.suffix or place.is_absolute() or path.count("/") != 1:
        return read_file(path)
    return load_rows(path, None, "train")


def _text_row(place: str, row: Row) -> TextRow:
    prompt = checked_prompt(place, "prompt", column(place, row, "prompt"))
    completion = checked_prompt(place, "completion", column(place, row, "completion"))
    if isinstance(completion, list):
        if len(completion) != 1 or completion[0]["role"] != "assistant":
            roles = ", ".join(message["role"] for message in completion)
            raise DataError(
                f"{place}: a completion is text or one message of the assistant, not messages of "
                f"{roles}; earlier turns belong into the prompt"
            )
        beside = [key for key in completion[0] if key not in ("role", "content")]
        if beside:
            raise DataError(
                f"{place}: the completion's message has {', '.join(beside)} beside its content, "
                "which is all that is taught; write them into the content as the model would"
            )
        completion = message_text(completion[0])
    columns = template_columns(row)
    return TextRow(place=place, prompt=prompt, completion=completion, columns=columns)


def _encode(row: TextRow, template: PromptTemplate) -> TokenRow | None:
    task = Task(uid=row.place, prompt=row.prompt, columns=row.columns, place=row.place)
    prompt = template.render(task)
    if prompt is None:
        return None
    tokenizer = template.tokenizer
    completion = row.completion.removeprefix(prompt.prefill)
    try:
        ids = tokenizer.encode(completion, add_special_tokens=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise DataError(
            f"{row.place}: the model's tokenizer cannot write the completion "
            f"{completion[-60:]!r}: {error}"
        ) from error
    template.check_ids(row.place, "completion", ids)
    eos: Any = tokenizer.eos_token_id
    if not ids or ids[-1] != eos:
        ids = [*ids, eos]
    return TokenRow(prompt_ids=prompt.ids, ids=tuple(ids))
