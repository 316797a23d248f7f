"""Tasks of reasoning-gym, for the reward `reasoning_gym`."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from grpo.data.source import check_fraction, check_index, check_int, is_heldout
from grpo.errors import DataError
from grpo.types import Task


class ReasoningGym:
    """`size` tasks of the named data set, generated from `seed`; a share of them is held out.

    config: settings of the data set. A question that was drawn twice is one task, and the split
    goes by the question's text, so that train and held-out never share one.
    """

    def __init__(
        self,
        dataset: str,
        size: int = 1000,
        seed: int = 0,
        heldout: float = 0.1,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        check_int("reasoning_gym: size", size, 1)
        check_fraction("reasoning_gym: heldout", heldout, inclusive=False)
        self.dataset = dataset
        self.count = size
        self.seed = seed
        self.heldout = heldout
        self.config = dict(config or {})

    @cached_property
    def _tasks(self) -> dict[str, list[Task]]:
        try:
            gym = importlib.import_module("reasoning_gym")
        except ImportError as error:
            raise DataError("reasoning_gym needs `pip install reasoning-gym`") from error
        try:
            entries = gym.create_dataset(
                self.dataset, size=self.count, seed=self.seed, **self.config
            )
        except (ValueError, TypeError, AssertionError) as error:
            raise DataError(f"reasoning_gym: {error}") from error
        splits: dict[str, list[Task]] = {"train": [], "heldout": []}
        seen: set[str] = set()
        for entry in entries:
            question = str(entry["question"])
            if question in seen:
                continue
            seen.add(question)
            split = "heldout" if is_heldout(question, self.heldout) else "train"
            task = Task(
                uid=f"{self.dataset}/{self.seed}/{len(seen) - 1}",
                prompt=question,
                answer=None if entry["answer"] is None else str(entry["answer"]),
                # as text: data sets of tables cannot hold objects of changing shape
                columns={"metadata": json.dumps(entry["metadata"], default=str)},
            )
            splits[split].append(task)
        return splits

    def size(self, split: Literal["train", "heldout"]) -> int:
        """Number of different tasks in the split."""
        return len(self._tasks[split])

    def task(self, split: Literal["train", "heldout"], index: int) -> Task:
        """The task at `index`: the same one every time, for one version of reasoning-gym."""
        check_index("reasoning_gym", index, self.size(split))
        return self._tasks[split][index]
