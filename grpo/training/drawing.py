"""What every batch asks for, and the prompts that are drawn for one.

Prompts come in the task order. A curriculum passes tasks over before they are sampled
(`grpo/training/curriculum.py`), and the template refuses those that are too long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from grpo.data.mixture import task_sampling
from grpo.data.prompts import PromptTemplate
from grpo.data.source import TaskOrder
from grpo.errors import DataError
from grpo.training.curriculum import Curriculum
from grpo.types import Group, Metrics, Prompt, Row, Sampling

BARREN = 10_000  # tasks that a curriculum may pass over in a row, besides two whole epochs


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """What every batch asks for. A rank of several asks for the places where `mine` is true."""

    tasks: TaskOrder
    template: PromptTemplate
    sampling: Sampling
    prompts_per_step: int
    num_generations: int
    seed: int
    oversample: float = 1.0
    max_rounds: int = 1
    mine: Callable[[int], bool] = lambda place: True
    curriculum: Curriculum | None = None
    length_at: Callable[[int], int] | None = None  # max_tokens of a step, where that changes
    names: tuple[str, ...] = ()  # parts of a mixture, as in the column `task`
    vocab_size: int | None = None  # token ids that the policy knows; None: not checked

    def max_tokens(self, step: int) -> int:
        """The greatest length of a completion sampled for `step`."""
        return self.length_at(step) if self.length_at else self.sampling.max_tokens

    @property
    def chooses(self) -> bool:
        """Whether groups of a batch are chosen after they were sampled."""
        return self.oversample > 1 or self.max_rounds > 1


@dataclass(frozen=True, kw_only=True)
class DrawnPrompt:
    """A prompt in its batch; `position` in the task order finds it again."""

    prompt: Prompt
    visit: int
    position: int


def draw(spec: RolloutSpec, count: int, step: int = 1) -> tuple[list[DrawnPrompt], Metrics]:
    """The next `count` prompts that are asked and fit; how many were not. DataError if none is."""
    curriculum = spec.curriculum
    if curriculum is not None:
        curriculum.advance(step)
    skipped = {f"curriculum/{n}/skipped": 0.0 for n in curriculum.rules} if curriculum else {}
    barren = 0  # tasks passed over in a row
    drawn: list[DrawnPrompt] = []
    before = dict(spec.template.counts)
    refused = 0
    while len(drawn) < count:
        first = spec.tasks.position
        for offset, (task, visit) in enumerate(spec.tasks.take(count - len(drawn))):
            rule = curriculum.skipped_by(task, first + offset) if curriculum else None
            barren = 0 if rule is None else barren + 1
            if rule is not None:
                skipped[f"curriculum/{rule}/skipped"] += 1
                continue
            prompt = spec.template.render(task)
            if prompt is None:
                refused += 1
            else:
                drawn.append(DrawnPrompt(prompt=prompt, visit=visit, position=first + offset))
        if refused > 1000 + 100 * count:
            raise DataError(
                f"{refused} prompts of one step are longer than data.max_prompt_length, or than "
                "what completions leave of the model's positions; raise the limit, or set "
                "data.overlong=truncate"
            )
        if barren > BARREN + 2 * (spec.tasks.size or 0):
            raise DataError(
                f"the curriculum passed over {barren} tasks in a row; widen its band, or set "
                "unmeasured=keep"
            )
    now = spec.template.counts
    counts = {f"prompts/{k}": float(now[k] - before[k]) for k in ("dropped", "truncated")}
    return drawn, counts | skipped


def with_temperatures(
    rows: Sequence[Row], groups: Sequence[Group], sampling: Sampling
) -> list[Row]:
    """The rows of `groups`, with the temperature of those sampled at one of their task's own."""
    own = [task_sampling(group.prompt.task, sampling).temperature for group in groups]
    return [
        row if own[row.group] == sampling.temperature else replace(row, temperature=own[row.group])
        for row in rows
    ]
