"""What a stage's tokenizer, templates and rows say, looked at before anything is sampled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from grpo import plugins, pretrained
from grpo.data import SOURCES
from grpo.data.conversation import KWARGS, TOOLS
from grpo.data.jsonl import Rows
from grpo.data.mixture import Mixture
from grpo.data.prompts import PromptTemplate, template_args
from grpo.schema import AnyStage, DistillStage, RejectStage, RLStage, SFTStage
from grpo.stages.endings import check_trained_eos, sampling_of, vocab_size
from grpo.types import Task, TaskSource

MOST_SHAPES = 256


def check_text(stage: AnyStage) -> None:
    """Refuse, without weights, what the stage would refuse before its first step.

    That needs the tokenizer on this machine; rows are looked at where `data.args.path` names a
    file. Raises RecipeError or DataError.
    """
    if not isinstance(stage, RLStage | RejectStage | DistillStage | SFTStage):
        return
    folder = Path(stage.model.path).expanduser()
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer_config.json")):
        return
    tokenizer = pretrained.tokenizer(str(folder), chat_template=stage.data.chat_template)
    size = vocab_size(str(folder))
    data = stage.data
    if isinstance(stage, SFTStage | DistillStage):
        check_trained_eos(tokenizer, str(folder))
    args = template_args(data.template_args)
    if isinstance(stage, SFTStage):
        PromptTemplate(data.template, tokenizer, vocab_size=size, **args)
        return
    if isinstance(stage, DistillStage) and stage.teacher.is_endpoint:
        return  # the teacher's own template, and its own ends
    sampling_of(stage.rollout, tokenizer, str(folder))
    template = PromptTemplate(
        stage.data.template,
        tokenizer,
        max_prompt_length=stage.data.max_prompt_length,
        overlong=stage.data.overlong,
        vocab_size=size,
        **args,
    )
    path = stage.data.args.get("path")
    if isinstance(path, str) and Path(path).expanduser().is_file():
        source = plugins.load("source", stage.data.source, SOURCES, stage.data.args)
        check_rows(source, template)


def check_rows(source: TaskSource, template: PromptTemplate) -> None:
    """Render a row of every kind that the source's files hold. Raises DataError.

    Rows are of one kind where their messages have the same roles and keys, and they themselves the
    same columns for the chat template. Sources that make up their tasks have one kind.
    """
    counts = dict(template.counts)
    seen: set[object] = set()
    for task in _tasks(source):
        kind = _kind(task)
        if kind not in seen and len(seen) < MOST_SHAPES:
            seen.add(kind)
            template.render(task)
    template.counts.update(counts)


def _tasks(source: TaskSource) -> Iterator[Task]:
    if isinstance(source, Rows):
        yield from source.tasks["train"]
    elif isinstance(source, Mixture):
        for part in source.parts:
            yield from _tasks(part.source)


def _kind(task: Task) -> object:
    own = task.columns.get(KWARGS)
    own = {k for k, v in own.items() if v is not None} if isinstance(own, dict) else repr(own)
    asked = (bool(task.columns.get(TOOLS)), frozenset(own))
    if isinstance(task.prompt, str):
        return asked
    messages = [(m.get("role"), frozenset(k for k, v in m.items() if v)) for m in task.prompt]
    return (asked, messages[0], messages[-1], frozenset(messages))
