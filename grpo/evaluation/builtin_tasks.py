"""The built-in tasks of `grpo eval`, one row each: where from, how asked, how judged, how often.

A task is what a published figure means by its name as far as a toolkit can hold it: the test split,
the answer judged strictly (a box or an answer block) and leniently (else the last number of the
text), sampled at R1's temperature 0.6 and top-p 0.95. Prompts differ from paper to paper, so only
figures made with one tool compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grpo.config.schema import RewardSpec
from grpo.data.files import read_rows
from grpo.errors import RecipeError, unknown_name
from grpo.outside.code import plugins
from grpo.outside.files.file_names import check_file_name
from grpo.types import Task, TaskSource

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."  # R1's advice
ENDLESS = 500  # tasks taken of a generated source where no limit is given


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """One row of the table.

    EvalTask(source="gsm8k", rewards=MATH, instruction=BOXED, k=4, max_tokens=1024)
    """

    source: str
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    file_args: Mapping[str, Any] | None = None  # with --data; None: the task is generated
    rewards: tuple[RewardSpec, ...]  # strict, and lenient where there is such a thing
    instruction: str = ""  # below the question where the model is talked to: not r1_zero, not raw
    template: str = ""  # empty: chat where the tokenizer has a chat template, else r1_zero
    max_tokens: int
    k: int  # completions per task, as the literature averages over
    metric: str = "exact_match"  # what lm-evaluation-harness calls it
    votes: bool = True  # whether answers can be counted for maj@k
    limit: int | None = None  # tasks; None: all of them


def _judge(name: str) -> tuple[RewardSpec, ...]:
    strict = RewardSpec(name=name, label="strict")
    return (strict, RewardSpec(name=name, label="lenient", args={"extraction": "lenient"}))


MATH = _judge("math")
NUMBER = _judge("accuracy")
CODE = (RewardSpec(name="code", label="strict"),)
ALL_ROWS = {"heldout_fraction": 1.0}
_CONTEST = EvalTask(
    source="aime", file_args=ALL_ROWS, rewards=MATH, instruction=BOXED, max_tokens=32_768, k=64
)
_GENERATED = EvalTask(
    source="multiplication",
    args={"digits": 2},
    rewards=NUMBER,
    instruction=BOXED,
    max_tokens=256,
    k=4,
    limit=ENDLESS,
)
_PROGRAM = EvalTask(
    source="humaneval",
    file_args=ALL_ROWS,
    rewards=CODE,
    max_tokens=2048,
    k=16,
    metric="pass@1",
    votes=False,
)


TASKS: dict[str, EvalTask] = {
    "gsm8k": replace(_CONTEST, source="gsm8k", max_tokens=1024, k=4),
    "math500": replace(_CONTEST, source="math", args=ALL_ROWS, max_tokens=4096, k=4),
    "aime24": replace(_CONTEST, args={"year": 2024}),
    "aime25": replace(_CONTEST, args={"year": 2025}),
    "amc": replace(_CONTEST, source="amc", k=16),
    "humaneval": _PROGRAM,
    "mbpp": replace(_PROGRAM, source="mbpp", k=4),
    "countdown": EvalTask(
        source="countdown",
        rewards=(RewardSpec(name="countdown", label="strict"),),
        instruction="Please reason step by step, and put the final expression within \\boxed{}.",
        max_tokens=1024,
        k=4,
        votes=False,
        limit=ENDLESS,
    ),
    "parity": EvalTask(
        source="parity", rewards=NUMBER, template="raw", max_tokens=64, k=4, limit=ENDLESS
    ),
    "multiplication": _GENERATED,
    "arithmetic": replace(
        _GENERATED, source="arithmetic", args={"prompt": "What is {expression}?"}
    ),
}
# Any other name that --data gives a file: rows of `prompt` and `answer`, or `prompt` and `tests`.
ROWS = replace(_CONTEST, source="file", max_tokens=1024, k=4)
PROGRAM_ROWS = replace(_PROGRAM, source="file", file_args={**ALL_ROWS, "answer": None}, k=4)


class Instructed:
    """A source whose questions end with an instruction on a line of its own."""

    def __init__(self, source: TaskSource, instruction: str) -> None:
        self.source = source
        self.instruction = instruction

    def size(self, split: Any) -> int | None:
        """As the source."""
        return self.source.size(split)

    def task(self, split: Any, index: int) -> Task:
        """The source's task; conversations stay as they are."""
        task = self.source.task(split, index)
        if not isinstance(task.prompt, str):
            return task
        return replace(task, prompt=f"{task.prompt}\n{self.instruction}")


def find_task(name: str, file: str | None, rewards: Sequence[str] = ()) -> EvalTask:
    """The row called `name`, reading `file` where one is given. Raises RecipeError, DataError.

    rewards: names that judge in place of the row's own; then a file's prompts are asked as they
    are.
    """
    task = _named(name, file, rewards)
    if not rewards:
        return task
    specs = tuple(RewardSpec(name=reward) for reward in rewards)
    titles = [spec.title for spec in specs]
    for spec in specs:
        if titles.count(spec.title) > 1:
            raise RecipeError(
                f"--rewards {','.join(rewards)} has the name {spec.title!r} twice, and figures are "
                "kept by name; rename one of the functions"
            )
    instruction = task.instruction if name in TASKS else ""
    return replace(task, rewards=specs, instruction=instruction)


def _named(name: str, file: str | None, rewards: Sequence[str]) -> EvalTask:
    if file is None:
        if name not in TASKS:
            hint = f" Rows of your own: --data {name}=FILE.jsonl."
            raise RecipeError(unknown_name("task", name, TASKS) + hint)
        return TASKS[name]
    if name not in TASKS:
        check_file_name(name, "the task of --data")  # OUT/<model>/<task>.<template>.jsonl
        programs = not rewards and "tests" in read_rows(file)[0][1]
        task = PROGRAM_ROWS if programs else ROWS
    else:
        task = TASKS[name]
    if task.file_args is None:
        raise RecipeError(f"task {name!r} makes its own problems and reads no file: {file!r}")
    return replace(task, args={**task.args, **task.file_args, "path": file})


def open_task(task: EvalTask) -> TaskSource:
    """The task's source, its data read. Raises DataError where it cannot be."""
    return plugins.load("source", task.source, task.args)
