"""Count the training prompts that are too long, before the first is sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grpo.data.conversation import KWARGS, TOOLS
from grpo.data.prompts import PromptTemplate
from grpo.errors import DataError, GrpoError, RecipeError
from grpo.stages.preflight.needed import leaves
from grpo.types import Task, TaskSource

MOST = 20_000  # prompts put into tokens, the longest first
SPECIAL = 8  # at most so many tokens that stand for no byte of the text


@dataclass(frozen=True, kw_only=True)
class Overlong:
    """A count of training prompts."""

    tasks: int  # of the source, or drawn from one that makes them up
    looked: int  # put into tokens
    found: int  # too long
    every: bool  # whether `tasks` are all there are


def overlong(source: TaskSource, template: PromptTemplate) -> Overlong:
    """Count overlong prompts. Raises DataError if all are, with overlong="error" if any is.

    A text has no more tokens than bytes, so only the longest rows of a table are tokenized, or
    none. `template.counts` is left as it was.
    """
    tasks = looked = found = 0
    every = True
    counts = dict(template.counts)
    shortest: Task | None = None
    for leaf in leaves(source, "train"):
        every &= leaf.every
        shortest = min([*leaf.tasks, *([shortest] if shortest else [])], key=_size, default=None)
        tasks += len(leaf.tasks)
        for task in _candidates(leaf.tasks, template):
            if looked == MOST:
                break
            looked += 1
            before = template.counts["truncated"]
            found += template.render(task) is None or template.counts["truncated"] > before
    template.counts.update(counts)
    if tasks and found == tasks and template.overlong == "drop":
        raise _none_fits(shortest, template)
    return Overlong(tasks=tasks, looked=looked, found=found, every=every)


def said(count: Overlong, template: PromptTemplate) -> tuple[str, ...]:
    """A sentence about the overlong prompts, if there are any."""
    if not count.found:
        return ()
    done = {"drop": "left out", "truncate": "cut to their last tokens"}[template.overlong]
    of = f"{count.tasks:,} training prompts" if count.every else f"{count.tasks:,} that were drawn"
    some = "at least " if count.looked == MOST else ""
    verb = "is" if count.found == 1 else "are"
    return (f"{some}{count.found:,} of {of} {verb} longer than {template.limit()[1]}: {done}",)


def _candidates(tasks: Sequence[Task], template: PromptTemplate) -> Iterator[Task]:
    """Tasks that may be too long: plain prompts, the longest first, then all conversations.

    A template adds the same length around every plain prompt; a conversation has to be rendered.
    """
    plain = [task for task in tasks if isinstance(task.prompt, str) and not _own(task)]
    plain.sort(key=_size, reverse=True)
    around: int | None = None
    for task in plain:
        limit, _ = template.limit(task)
        if limit is None:
            return
        size = _size(task)
        if around is None:
            around = template.text_bytes(task) - size + SPECIAL
        if size + around <= limit:
            break
        yield task
    yield from (task for task in tasks if not isinstance(task.prompt, str) or _own(task))


def _size(task: Task) -> int:
    """Bytes of what is asked; of messages, with all that they hold."""
    return len(str(task.prompt).encode(errors="replace"))


def _none_fits(shortest: Task | None, template: PromptTemplate) -> GrpoError:
    limit, why = template.limit(shortest)
    length = template.length(shortest) if shortest else 0
    if template.positions is not None and limit != template.max_prompt_length:
        room = template.positions - length
        if room > 0:
            return RecipeError(
                f"no training prompt has room beside max_completion_length = "
                f"{template.positions - (limit or 0)} in the model's {template.positions} "
                f"positions, the shortest takes {length}; valid: 1 to {room}"
            )
    return DataError(
        f"every training prompt is longer than {why}, the shortest has {length} tokens: raise the "
        "limit, or shorten them"
    )


def _own(task: Task) -> bool:
    return bool(task.columns.get(KWARGS) or task.columns.get(TOOLS))
