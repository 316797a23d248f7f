"""The seeded, resumable order of tasks, and the split into train and held-out.

The only state is one integer. A shuffle is a keyed permutation computed one index at a time, so
resuming at position 10**9 costs no more than resuming at 0. Noise comes from blake2b and
`random.Random`, which give the same numbers on every machine and in every supported version.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, Literal, Protocol, runtime_checkable

from grpo.errors import DataError
from grpo.types import Task, TaskSource

Split = Literal["train", "heldout"]


@runtime_checkable
class DemonstrationSource(TaskSource, Protocol):
    """A source that a tiny base model can be pretrained on."""

    def alphabet(self) -> str:
        """Every character that prompts and demonstrations use, tags apart."""
        ...

    def demonstration(self, task: Task, rng: random.Random) -> str:
        """A completion of `task`: `<think>…</think><answer>…</answer>`."""
        ...


def stable_hash(*parts: object) -> int:
    """64-bit blake2b of the parts' text: the same number in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    encoded = text.encode(errors="surrogatepass")  # JSON may hold half a pair
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")


def is_heldout(key: str, fraction: float) -> bool:
    """Whether the task with this canonical key is held out; `fraction` of all keys are."""
    return stable_hash("split", key) < fraction * 2**64


def permuted(index: int, size: int, *key: object) -> int:
    """Image of `index` under a pseudo-random permutation of range(size) that depends on `key`.

    A four-round Feistel network over the smallest even number of bits that holds `size`, walked
    until it lands inside the range (Black and Rogaway 2002): bijective, and no table is stored.
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} is outside range({size})")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    seed = stable_hash("permutation", *key)
    value = index
    while True:
        left, right = value >> half, value & mask
        for turn in range(4):
            left, right = right, left ^ (stable_hash(seed, turn, right) & mask)
        value = left << half | right
        if value < size:
            return value


def check_index(name: str, index: int, size: int | None) -> None:
    """Raise IndexError unless `index` is a valid one for a split of `size` tasks (None: any)."""
    if index < 0 or (size is not None and index >= size):
        raise IndexError(f"{name} has no task {index}: the split holds {size}")


def is_number(value: Any) -> bool:
    """Whether `value` is an int or a float; a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise DataError unless `value` is a whole number from `low` to `high` (None: no bound)."""
    if (
        not (is_number(value) and isinstance(value, int))
        or value < low
        or (high is not None and value > high)
    ):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise DataError(f"{name} must be a whole number {bounds}, not {value!r}")


def check_fraction(name: str, value: Any, *, inclusive: bool = True) -> None:
    """Raise DataError unless 0 <= value <= 1 (0 < value < 1 if not `inclusive`)."""
    if not is_number(value) or not (0 <= value <= 1 if inclusive else 0 < value < 1):
        bounds = "from 0 to 1" if inclusive else "between 0 and 1, both excluded"
        raise DataError(f"{name} must be {bounds}, not {value!r}")


def demonstration_text(thought: str, answer: str) -> str:
    """The completion every pretraining mixture uses: a thought and an answer, each in its tag."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


class TaskOrder:
    """The order in which a run draws tasks: a fresh shuffle each epoch, or 0, 1, 2, … if unbounded.

    `position` (tasks drawn so far) is the whole state: a new TaskOrder at that position goes on
    where the old one stopped.
    """

    def __init__(self, source: TaskSource, split: Split, seed: int, position: int = 0) -> None:
        self.source = source
        self.split: Split = split
        self.seed = seed
        self.position = position
        self.size = source.size(split)
        if self.size == 0:
            raise DataError(f"the {split} split holds no tasks")

    def take(self, n: int) -> list[tuple[Task, int]]:
        """The next `n` tasks, each with its visit, which keeps the noise of repeated draws apart.

        The visit counts how often the task was drawn before (the epoch). An endless source may
        repeat a task at any time, so there it is the place in the order.
        """
        drawn = [self.at(position) for position in range(self.position, self.position + n)]
        self.position += n
        return drawn

    def at(self, position: int) -> tuple[Task, int]:
        """The task at a place in the order, with its visit."""
        if self.size is None:
            # The seed picks a stretch of the endless stream, so that seeds see different tasks.
            start = stable_hash("order", self.seed, self.split) >> 16
            return self.source.task(self.split, start + position), position
        epoch, index = divmod(position, self.size)
        shuffled = permuted(index, self.size, "order", self.seed, self.split, epoch)
        return self.source.task(self.split, shuffled), epoch
