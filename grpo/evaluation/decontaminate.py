"""Whether a text leaks an evaluation set: exact match of normalized text, and n-grams of words.

The n-gram test is that of GPT-3 (arXiv 2005.14165, appendix C) and of R1 (2501.12948): a run of n
words shared with an evaluation task is a leak. Runs shared by many tasks of one set are the wording
of its prompts ("Using the numbers …, create an equation"). They would condemn every training task
of the same kind, so a run that is more than half wording does not count. Texts of fewer than n
words are compared only as a whole.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo.config.schema import Data
from grpo.data.files import read_rows
from grpo.errors import DataError, PluginError, RecipeError
from grpo.outside.code import plugins
from grpo.outside.rows.columns import message_text
from grpo.types import Message, Prompt, Task, TaskSource

# A run of words is wording, not a problem, where more tasks of a set than this share it.
WORDING_TASKS, WORDING_SHARE = 2, 0.1
NGRAM = 10  # words in a row shared with a training row that count as contamination (R1: 10)
MOST_HELDOUT = 10_000  # tasks taken of an endless source's held-out split
PROMPT_COLUMNS = ("prompt", "question", "problem")

_BY_CHARACTER = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts that write no spaces
_WORD = rf"\d+\.\d+|[{_BY_CHARACTER}]|[^\W{_BY_CHARACTER}]+"
_WORDS = re.compile(_WORD)
# Operators stay, or 3 + 4 would be 3 * 4; sentence punctuation and dollar signs do not.
_TOKENS = re.compile(rf"{_WORD}|[^\w\s.,;:?\"'$]")


def words(text: str) -> list[str]:
    """Lower-case words of a text, numbers whole, in Han, Kana and Hangul one per character."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def normalized(text: str) -> str:
    """The text without case, spacing, sentence punctuation and dollar signs."""
    return " ".join(_TOKENS.findall(unicodedata.normalize("NFKC", text).casefold()))


def ngrams(text: str, n: int) -> list[str]:
    """Every run of `n` words, in order; none if there are fewer."""
    found = words(text)
    return [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """What a prompt asks: the text, or its messages without the system's."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message_text(m) for m in prompt if m["role"] != "system")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation sets that may not leak into training rows.

    Evaluation.of({"gsm8k": [["What is …?", "a solution"]]}, 10).leak("What is …?") == "gsm8k"
    """

    n: int
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])  # normalized -> set
    grams: Mapping[str, str] = field(default_factory=dict[str, str])  # n words -> set
    tasks: Mapping[str, int] = field(default_factory=dict[str, int])  # set -> different tasks
    wording: Mapping[str, int] = field(default_factory=dict[str, int])  # set -> runs of it

    @classmethod
    def of(cls, sets: Mapping[str, Sequence[Sequence[str]]], n: int) -> Evaluation:
        """`sets` has, per set and task, the prompt and then answers and solutions."""
        prompts: dict[str, str] = {}
        grams: dict[str, str] = {}
        tasks: dict[str, int] = {}
        wording: dict[str, int] = {}
        for name, rows in sets.items():
            different = {normalized(row[0]): row for row in rows}
            counts: Counter[str] = Counter()
            for row in different.values():
                counts.update({gram for text in row for gram in ngrams(text, n)})
            most = max(WORDING_TASKS, WORDING_SHARE * len(different))
            shared = {gram for gram, count in counts.items() if count > most}
            prompts |= dict.fromkeys(different, name)
            for row in different.values():
                grams |= {gram: name for text in row for gram in _own(ngrams(text, n), shared, n)}
            tasks[name], wording[name] = len(different), len(shared)
        return cls(n=n, prompts=prompts, grams=grams, tasks=tasks, wording=wording)

    def leak(self, text: str) -> str:
        """The set that `text` leaks, "" for none."""
        if not self.tasks:
            return ""
        whole = self.prompts.get(normalized(text))
        if whole is not None:
            return whole
        return next((self.grams[gram] for gram in ngrams(text, self.n) if gram in self.grams), "")


def _own(grams: Sequence[str], shared: set[str], n: int) -> Iterator[str]:
    """Those runs of a text, given in order, that are at most half wording."""
    places = [place for place, gram in enumerate(grams) if gram in shared]
    wording = {word for place in places for word in range(place, place + n)}
    for place, gram in enumerate(grams):
        if 2 * sum(word in wording for word in range(place, place + n)) <= n:
            yield gram


def check_evaluation(names: Sequence[str], data: Data) -> None:
    """Check the first task of each set for what `load_evaluation` would refuse. DataError."""
    for name in names:
        next(_rows(name, data), None)


def load_evaluation(names: Sequence[str], n: int, data: Data) -> Evaluation:
    """The evaluation sets called `names`: JSONL files, or sources whose held-out split is meant.

    A source of the same name as `data.source` gets `data.args`, any other none. Raises DataError.
    """
    return Evaluation.of({name: list(_rows(name, data)) for name in names}, n)


def _rows(name: str, data: Data) -> Iterator[list[str]]:
    if name.endswith((".jsonl", ".json")):
        for place, row in read_rows(name):
            yield _texts(place, row)
        return
    try:
        args = data.args if name == data.source else {}
        source: TaskSource = plugins.load("source", name, args)
    except DataError as error:  # it is a source, and has no rows to give
        raise DataError(f"filter.decontaminate = {name!r}: {error}") from error
    except (PluginError, RecipeError) as error:
        raise DataError(
            f"filter.decontaminate = {name!r} is neither a JSONL file nor a source that needs no "
            f"arguments: {error}"
        ) from error
    size = source.size("heldout")
    if size == 0:
        raise DataError(f"filter.decontaminate = {name!r} has no held-out tasks to compare with")
    for index in range(MOST_HELDOUT if size is None else size):
        yield task_texts(source.task("heldout", index))


def task_texts(task: Task) -> list[str]:
    """The prompt, the answer and every other text that an evaluation task carries."""
    others = [value for value in task.columns.values() if isinstance(value, str)]
    return [prompt_text(task.prompt), *([task.answer] if task.answer else []), *others]


def _texts(place: str, row: Mapping[str, Any]) -> list[str]:
    name = next((name for name in PROMPT_COLUMNS if row.get(name)), None)
    if name is None:
        raise DataError(
            f"{place} has none of the columns {', '.join(PROMPT_COLUMNS)}, one of which "
            f"filter.decontaminate needs; it has {', '.join(sorted(row)) or 'none'}"
        )
    others = [value for key, value in row.items() if key != name and isinstance(value, str)]
    return [prompt_text(row[name]), *others]


def training_rows(path: str) -> Evaluation:
    """The training rows of a JSONL file, for `contaminated`: every text and conversation in them.

    Wording that many rows share is no sign of contamination.
    """
    texts: list[list[str]] = []
    for _, row in read_rows(path):
        found = [
            prompt_text(value)
            for value in row.values()
            if isinstance(value, str) or (isinstance(value, list) and _is_conversation(value))
        ]
        texts += [found] if found else []
    return Evaluation.of({"training": texts}, NGRAM)


def contaminated(prompts: Sequence[Prompt], training: Evaluation) -> float:
    """Share of tasks whose question stands in the training rows, as a whole or by 10 words."""
    leaks = [bool(training.leak(prompt_text(prompt.task.prompt))) for prompt in prompts]
    return sum(leaks) / len(leaks)


def _is_conversation(value: list[Any]) -> bool:
    return all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
