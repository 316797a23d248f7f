"""Tokenizers, templates and rows of a stage: how they are made, and checked before sampling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config.schema import (
    AnyStage,
    Data,
    DistillStage,
    EvalStage,
    RejectStage,
    RLStage,
    SFTLearner,
    SFTStage,
)
from grpo.data.conversation import KWARGS, TOOLS
from grpo.data.mixture import Mixture
from grpo.data.prompts import PromptTemplate, template_args
from grpo.data.table import TableSource
from grpo.errors import RecipeError
from grpo.evaluation import heldout
from grpo.model import pretrained
from grpo.outside.code import plugins
from grpo.stages.endings import check_trained_eos, sampling_of, vocab_size
from grpo.stages.lengths import overlong, said
from grpo.stages.preflight.found import Found
from grpo.stages.served import ServedTemplate
from grpo.stages.supervised_rows import TextRow, check_encodable
from grpo.types import Message, Task, TaskSource

MOST_SHAPES = 256
MOST_CHARACTERS = 8192
_OTHER_TOKENS = {
    "teacher.path": "method = 'logits' compares distributions token by token, and PAIR; use "
    "method=sequence, or two models with the same tokenizer",
    "slm.reference": "PAIR, so their losses cannot be compared; train the reference from a model "
    "with the same tokenizer",
}


def check_text(
    stage: AnyStage,
    source: TaskSource | None = None,
    rows: Mapping[str, Sequence[TextRow]] | None = None,
) -> Found:
    """Refuse, without weights, what the stage would refuse before its first step.

    Only where the tokenizer is on this machine. source: the stage's tasks; None: those of the file
    in `data.args.path`. rows: of an sft stage, by their paths. Raises RecipeError or DataError.
    """
    if isinstance(stage, EvalStage):
        return _check_eval(stage, source)
    if not isinstance(stage, RLStage | RejectStage | DistillStage | SFTStage):
        return Found()
    if not has_tokenizer(stage.model.path):
        return Found()
    path = _folder(stage.model.path)
    tokenizer = pretrained.tokenizer(path, chat_template=stage.data.chat_template)
    if isinstance(stage, SFTStage | DistillStage):
        check_trained_eos(tokenizer, path)
    if isinstance(stage, SFTStage):
        _check_supervised(stage, tokenizer, path, rows or {})
        return Found()
    if isinstance(stage, DistillStage):
        if stage.teacher.is_endpoint:
            return _check_served(stage, source, tokenizer)
        if not has_tokenizer(stage.teacher.path):
            return Found()
        path = _folder(stage.teacher.path)
        tokenizer = pretrained.tokenizer(path, "teacher.path")  # with the template it has
    sampling_of(stage.rollout, tokenizer, path)
    template = template_of(stage.data, tokenizer, path, stage.rollout.longest_completion)
    source = source or _of_file(stage.data)
    if source is None:
        return Found()
    check_rows(source, template)
    count = overlong(source, template)
    asked = stage.eval.num_tasks if isinstance(stage, RLStage) else 0
    prompts = heldout.prepare(source, template, asked) if asked else []
    known = {stage.name: len(prompts)} if prompts else {}
    return Found(notes=said(count, template), heldout=known)


def template_of(
    data: Data,
    tokenizer: Any,
    path: str,
    completion: int,
    setting: str = "rollout.max_completion_length",
) -> PromptTemplate:
    """The prompts of a stage for the model `path`, with room behind them for a completion.

    completion: the greatest length that `setting` asks for. Raises RecipeError where the model has
    no positions for a prompt beside it.
    """
    room = pretrained.positions(path)
    if room is not None and completion >= room:
        raise RecipeError(
            f"{setting} = {completion} leaves no room for a prompt: the model has {room} "
            f"positions; valid: 1 to {room - 1}, less the tokens of the prompts"
        )
    return PromptTemplate(
        data.template,
        tokenizer,
        max_prompt_length=data.max_prompt_length,
        overlong=data.overlong,
        vocab_size=vocab_size(path),
        positions=room,
        completion=completion,
        **template_args(data.template_args),
    )


def row_template(stage: SFTStage | DistillStage, tokenizer: Any, path: str) -> PromptTemplate:
    """The prompts of rows that teach the model `path`; no prompt is too long by itself."""
    name, args = stage.data.template, template_args(stage.data.template_args)
    return PromptTemplate(name, tokenizer, vocab_size=vocab_size(path), **args)


def longest_row(path: str, learner: SFTLearner) -> int:
    """Tokens a row may have: learner.max_length, or the model's positions if they are fewer."""
    return min(learner.max_length, pretrained.positions(path) or learner.max_length)


def same_tokens(setting: str, path: str, tokenizer: Any, model: str) -> None:
    """Refuse a teacher or a reference whose token ids mean something else than the model's.

    setting: which of the two `path` is. tokenizer: of the model `model`. Raises RecipeError.
    """
    if pretrained.tokenizer(path, setting).get_vocab() != tokenizer.get_vocab():
        said = f"{setting} = {path!r} has other tokens than model.path = {model!r}"
        raise RecipeError(_OTHER_TOKENS[setting].replace("PAIR", said))


def check_rows(source: TaskSource, template: PromptTemplate) -> None:
    """Render a row of every kind that the source's files hold. Raises DataError.

    Rows are of one kind if their messages have the same roles and keys, and the rows the same
    columns for the chat template. A source that makes up its tasks has one kind. A row with a
    character that no earlier row has is rendered too: the tokenizer may not be able to write it.
    """
    counts = dict(template.counts)
    for task in _kinds(_tasks(source)):
        template.render(task)
    template.counts.update(counts)


def has_tokenizer(path: str) -> bool:
    """Whether the folder `path` has what a tokenizer and a configuration are read from."""
    folder = Path(path).expanduser()
    return bool(path) and all(
        (folder / name).is_file() for name in ("config.json", "tokenizer_config.json")
    )


def _folder(path: str) -> str:
    return str(Path(path).expanduser())


def _check_eval(stage: EvalStage, source: TaskSource | None) -> Found:
    asked: dict[str, int] = {}
    for path in map(_folder, filter(has_tokenizer, stage.models)):
        tokenizer = pretrained.tokenizer(path, "models", stage.data.chat_template)
        setting, length = "max_completion_length", stage.max_completion_length
        template = template_of(stage.data, tokenizer, path, length, setting)
        if source is not None:
            asked[stage.name] = len(heldout.prepare(source, template, stage.num_tasks))
    return Found(heldout=asked)


def _check_served(stage: DistillStage, source: TaskSource | None, tokenizer: Any) -> Found:
    """Prompts for a server, which has a template and ends of its own."""
    template = ServedTemplate(stage.data, tokenizer)
    if source is None:
        return Found()
    check_rows(source, template)
    return Found(notes=said(overlong(source, template), template))


def _check_supervised(
    stage: SFTStage, tokenizer: Any, path: str, rows: Mapping[str, Sequence[TextRow]]
) -> None:
    """Template and rows of an sft stage."""
    template = row_template(stage, tokenizer, path)
    most = longest_row(path, stage.learner)
    for each in rows.values():
        tasks = [Task(uid=str(n), prompt=_whole(row)) for n, row in enumerate(each)]
        check_encodable([each[int(task.uid)] for task in _kinds(tasks)], each, template, most)


def _whole(row: TextRow) -> str | list[Message]:
    """All that is written of a row, as a prompt."""
    if isinstance(row.prompt, str):
        return row.prompt + row.completion
    return [*row.prompt, {"role": "assistant", "content": row.completion}]


def _of_file(data: Data) -> TaskSource | None:
    path = data.args.get("path")
    if isinstance(path, str) and Path(path).expanduser().is_file():
        return plugins.load("source", data.source, data.args)
    return None


def _tasks(source: TaskSource) -> Iterator[Task]:
    if isinstance(source, TableSource):
        yield from source.tasks["train"]
    elif isinstance(source, Mixture):
        for part in source.parts:
            yield from _tasks(part.source)


def _kinds(tasks: Iterable[Task]) -> Iterator[Task]:
    """The first task of every kind, and of every character."""
    seen: set[object] = set()
    characters: set[str] = set()
    for task in tasks:
        kind = _kind(task)
        new = kind not in seen and len(seen) < MOST_SHAPES
        written = _written(task)
        if new or (len(characters) < MOST_CHARACTERS and not written <= characters):
            seen.add(kind)
            characters |= written
            yield task


def _written(task: Task) -> set[str]:
    if isinstance(task.prompt, str):
        return set(task.prompt)
    return {c for message in task.prompt for c in str(message.get("content") or "")}


def _kind(task: Task) -> object:
    own = task.columns.get(KWARGS)
    own = {k for k, v in own.items() if v is not None} if isinstance(own, dict) else repr(own)
    asked = (bool(task.columns.get(TOOLS)), frozenset(own))
    if isinstance(task.prompt, str):
        return asked
    messages = [(m.get("role"), frozenset(k for k, v in m.items() if v)) for m in task.prompt]
    return (asked, messages[0], messages[-1], frozenset(messages))
