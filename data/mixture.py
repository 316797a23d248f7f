"""Several sources as one, at chosen shares: reasoning, chat and safety prompts in one run.

DeepSeek-R1 (2501.12948) ends with reinforcement learning for all scenarios: verifiable tasks and
preference prompts mixed, each scored by rewards of its own kind. The column `task` has the name of
a task's part, by which the `routed` reward chooses. A part may have its own temperature and length.

The order is a function of the index alone, so a run resumes by its position. Indices are divided
into blocks, in which every part has exactly its share of places in a seeded order. A part that is
used up begins again, reshuffled. Held-out indices end when every part has given each task once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm
from random import Random
from typing import Any

from grpo.data.prompts import SAMPLING_COLUMN
from grpo.data.source import DemonstrationSource, Split, check_index, is_number, permuted
from grpo.errors import DataError, unknown_name
from grpo.outside.code.plugins import load
from grpo.types import Sampling, Task, TaskSource

# The settings of sampling that a task may have in SAMPLING_COLUMN.
SAMPLING_KEYS = ("temperature", "max_completion_length")
KEYS = ("name", "source", "args", "weight", *SAMPLING_KEYS)
BLOCK = 1000  # places in a block if the weights are not in a ratio of smaller numbers


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture."""

    name: str
    source: TaskSource
    weight: float
    columns: Mapping[str, Any]


class Mixture:
    """`parts`: [{name, source, args, weight, temperature?, max_completion_length?}, …].

    Weights are shares of the prompts (1 where left out). The training split has no end; the
    held-out split is the parts' own, interleaved at the same shares until each is used up.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]]) -> None:
        self.parts = [_part(index, entry) for index, entry in enumerate(parts)]
        if not self.parts:
            raise DataError("mixture: parts is a list of at least one {name, source, weight}")
        self.names = tuple(part.name for part in self.parts)
        for name in self.names:
            if self.names.count(name) > 1:
                raise DataError(f"mixture: several parts have the name {name!r}; give each its own")
        self.places = shares([part.weight for part in self.parts])
        self._heldout: list[tuple[int, int]] | None = None

    def size(self, split: Split) -> int | None:
        """None for training, and where a held-out split is endless; else the sum of the parts'."""
        sizes = [part.source.size(split) for part in self.parts]
        if split == "train" or any(size is None for size in sizes):
            for part, size in zip(self.parts, sizes, strict=True):
                if size == 0:
                    raise DataError(f"mixture: the {split} split of {part.name!r} holds no tasks")
            return None
        return sum(size or 0 for size in sizes)

    def task(self, split: Split, index: int) -> Task:
        """The task at `index`, with the part's name before its uid and cluster."""
        size = self.size(split)
        check_index("mixture", index, size)
        number, place = self.at(split, index) if size is None else self._finite()[index]
        part = self.parts[number]
        count = part.source.size(split)
        if count is not None:
            # Held-out tasks come in the source's own order, of which a prefix is evaluated.
            epoch, place = divmod(place, count)
            if split == "train":
                place = permuted(place, count, "mixture", part.name, epoch)
        task = part.source.task(split, place)
        return replace(
            task,
            uid=f"{part.name}/{task.uid}",
            cluster=f"{part.name}/{task.cluster or task.uid}",
            columns={**task.columns, **part.columns},
        )

    def at(self, split: Split, index: int) -> tuple[int, int]:
        """(part, how many of its tasks came before) for an index of an endless mixture."""
        size = sum(self.places)
        block, place = divmod(index, size)
        place = permuted(place, size, "mixture", split, block)
        for number, (end, width) in enumerate(
            zip(accumulate(self.places), self.places, strict=True)
        ):
            if place < end:
                return number, block * width + place - (end - width)
        raise AssertionError("places add up to a block")

    def alphabet(self) -> str:
        """Characters of all parts. Raises DataError for a part that cannot be pretrained on."""
        return "".join(sorted({c for part in self.parts for c in _shown(part).alphabet()}))

    def words(self) -> tuple[str, ...]:
        """Texts of several characters that are one token, of all parts that have such texts."""
        found = (getattr(part.source, "words", tuple)() for part in self.parts)
        return tuple(dict.fromkeys(word for words in found for word in words))

    def demonstration(self, task: Task, rng: Random) -> str:
        """The demonstration of the part that the task is from."""
        part = self.parts[self.names.index(task.columns["task"])]
        return _shown(part).demonstration(task, rng)

    def _finite(self) -> list[tuple[int, int]]:
        """Every held-out index: as in an endless mixture, past what a part does not have."""
        if self._heldout is None:
            sizes = [part.source.size("heldout") or 0 for part in self.parts]
            blocks = max(-(-size // width) for size, width in zip(sizes, self.places, strict=True))
            order = (self.at("heldout", i) for i in range(blocks * sum(self.places)))
            self._heldout = [(number, place) for number, place in order if place < sizes[number]]
        return self._heldout


def shares(weights: Sequence[float]) -> list[int]:
    """Places of each part in a block: the smallest whole numbers in the ratio of the weights.

    Where they add up to more than BLOCK, the nearest that add up to it (largest remainders), one
    at least for each part. Raises DataError unless every weight is above 0.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    common = lcm(*(share.denominator for share in exact))
    whole = [int(share * common) for share in exact]
    whole = [count // gcd(*whole) for count in whole]
    if sum(whole) <= BLOCK:
        return whole
    wanted = [share * BLOCK / sum(exact) for share in exact]
    places = [max(1, int(share)) for share in wanted]
    order = sorted(range(len(wanted)), key=lambda i: int(wanted[i]) - wanted[i])
    for i in order[: max(0, BLOCK - sum(places))]:
        places[i] += 1
    return places


def task_sampling(task: Task, sampling: Sampling, max_tokens: int | None = None) -> Sampling:
    """`sampling` with the settings of `task`'s own; its length can only be shorter.

    `max_tokens`: the greatest length allowed now (None: the one in `sampling`).
    """
    length = sampling.max_tokens if max_tokens is None else max_tokens
    asked = task.columns.get(SAMPLING_COLUMN)
    if not isinstance(asked, Mapping):
        return sampling if length == sampling.max_tokens else replace(sampling, max_tokens=length)
    where = f"task {task.uid}: column {SAMPLING_COLUMN!r}"
    own = _sampling(where, {key: asked[key] for key in asked})
    return replace(
        sampling,
        temperature=own.get("temperature", sampling.temperature),
        max_tokens=min(length, own.get("max_completion_length", length)),
    )


def _part(index: int, entry: Mapping[str, Any]) -> Part:
    where = f"mixture: parts.{index}"
    for key in entry:
        if key not in KEYS:
            raise DataError(f"{where}: {unknown_name('key', str(key), KEYS)}")
    name, source = entry.get("name"), entry.get("source")
    if not isinstance(source, str):
        raise DataError(f"{where}.source = {source!r} is not the name of a source")
    name = source.rpartition(":")[2] if name is None else name
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}.name = {name!r} is not text")
    weight = entry.get("weight", 1.0)
    if not is_number(weight) or not 0 < weight < float("inf"):
        raise DataError(f"{where}.weight = {weight!r} has to be a number above 0")
    sampling = _sampling(where, {key: entry[key] for key in SAMPLING_KEYS if key in entry})
    made = load("source", source, entry.get("args"))
    columns = {"task": name, **({SAMPLING_COLUMN: sampling} if sampling else {})}
    return Part(name=name, source=made, weight=float(weight), columns=columns)


def _shown(part: Part) -> DemonstrationSource:
    if not isinstance(part.source, DemonstrationSource):
        raise DataError(
            f"mixture: {part.name!r} cannot be pretrained on: {type(part.source).__name__} has no "
            "alphabet() and demonstration(task, rng)"
        )
    return part.source


def _sampling(where: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in asked.items():
        if key not in SAMPLING_KEYS:
            raise DataError(f"{where}: {unknown_name('key', str(key), SAMPLING_KEYS)}")
        if key == "temperature" and not (is_number(value) and 0 < value < float("inf")):
            raise DataError(f"{where}.temperature = {value!r} has to be a number above 0")
        if key == "max_completion_length" and not (type(value) is int and value >= 1):
            raise DataError(f"{where}.{key} = {value!r} has to be a whole number, 1 or more")
    return dict(asked)
