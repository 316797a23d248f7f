"""The distill stage: a teacher's verified completions teach a student.

    teacher -> teacher/shards -> data/ (the filters of the reject stage) -> fine-tuning -> model/

R1's distillation is supervised fine-tuning on such rows (2501.12948, section 3). With method=logits
the student learns the teacher's distribution at each of their tokens instead: the forward KL
divergence of GKD (arXiv 2306.13649), by TRL's own function. It is off-policy: the completions are
the teacher's verified ones. The teacher is a model in any engine, or a server with OpenAI's API. A
server gives no token ids, so the student's tokenizer reads its text.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from grpo.config.schema import DistillStage, Model, Recipe
from grpo.data.source import stable_hash
from grpo.errors import DataError, RecipeError
from grpo.evaluation.decontaminate import prompt_text
from grpo.outside.code import plugins
from grpo.outside.terminal.console import Console
from grpo.rollout.remote.endpoint import EndpointEngine
from grpo.rollout.settings import EndpointSettings
from grpo.stages.endings import sampling_of
from grpo.stages.prompting import same_tokens
from grpo.stages.reject import leave_rows
from grpo.stages.served import ServedTemplate
from grpo.stages.sft import encoded, fine_tune, frozen, load_tokenizer
from grpo.stages.sft_trainer import IGNORED, StageTrainer
from grpo.stages.supervised_rows import TextRow, read_rows
from grpo.stages.wiring import Sampler, build_sampler
from grpo.types import EngineSpec


def run(stage: DistillStage, recipe: Recipe, folder: Path, console: Console) -> dict[str, Any]:
    """Leave `folder/data` and `folder/model`; the summary. Continues an interrupted stage."""
    tokenizer = load_tokenizer(stage.model.path, stage.data.chat_template)
    if stage.method == "logits":
        same_tokens("teacher.path", stage.teacher.path, tokenizer, stage.model.path)
    build, name = _local, stage.teacher.path
    if stage.teacher.is_endpoint:
        build, name = _served, f"{stage.teacher.model or 'a model'} at {stage.teacher.path}"
    build = partial(build, stage, recipe)
    sampled = leave_rows(stage, recipe, folder, console, build, name, folder / "teacher")
    rows = read_rows(sampled["data"])
    if stage.shuffle_answers:
        rows = shuffled(rows, stable_hash("shuffle", recipe.run.seed, stage.name))
    found, overlong = encoded(stage, {"verified": rows}, tokenizer, console)
    learned = fine_tune(
        found["verified"],
        stage=stage,
        tokenizer=tokenizer,
        run=recipe.run,
        folder=folder,
        console=console,
        trainer=_trainer(stage),
    )
    control = " (shuffled answers)" if stage.shuffle_answers else ""
    return {
        **learned,
        "result": f"kept {sampled['rows']} of {sampled['completions']} completions; "
        f"student{control}: {learned['result']}",
        "seconds": round(learned["seconds"] + sampled["seconds"], 1),
        "dropped_rows": overlong,
        "teacher": sampled,
    }


def shuffled(rows: Sequence[TextRow], seed: int) -> list[TextRow]:
    """The rows with every prompt given another prompt's completion, each completion used once.

    Prompts are put in a drawn order and completions moved on by as many rows as the most frequent
    prompt has. Raises DataError where one prompt has more than half of the rows.
    """
    by_prompt = sorted(rows, key=lambda row: prompt_text(row.prompt))
    groups = [list(same) for _, same in groupby(by_prompt, lambda row: prompt_text(row.prompt))]
    random.Random(seed).shuffle(groups)
    laid = [row for group in groups for row in group]
    most = max(map(len, groups))
    if 2 * most > len(laid):
        raise DataError(
            f"shuffle_answers: one prompt has {most} of {len(laid)} rows, so there are not enough "
            "completions of other prompts; lower filter.keep, or raise filter.num_tasks"
        )
    moved = [*laid[most:], *laid[:most]]
    return [
        replace(row, completion=other.completion) for row, other in zip(laid, moved, strict=True)
    ]


# The teacher


def _local(stage: DistillStage, recipe: Recipe) -> Sampler:
    """The teacher in an engine of this toolkit. Raises RecipeError."""
    model = Model(path=stage.teacher.path, dtype=stage.model.dtype)
    data = stage.data.model_copy(update={"chat_template": ""})  # the teacher has its own
    try:
        return build_sampler(model=model, data=data, rollout=stage.rollout, recipe=recipe)
    except RecipeError as error:
        raise RecipeError(str(error).replace("model.path = ", "teacher.path = ", 1)) from error


def _served(stage: DistillStage, recipe: Recipe) -> Sampler:
    """The teacher behind OpenAI's API. The student's tokenizer measures and writes the prompts."""
    rollout = stage.rollout
    tokenizer = load_tokenizer(stage.model.path, stage.data.chat_template)
    template = ServedTemplate(stage.data, tokenizer)
    args = {**rollout.engine_args, "url": stage.teacher.path, "model": stage.teacher.model}
    args |= {"api_key_env": stage.teacher.api_key_env}
    plugins.check_args("engine", "endpoint", EndpointSettings, args)
    length = stage.data.max_prompt_length + rollout.longest_completion
    spec = EngineSpec(model=stage.model.path, max_length=length, seed=recipe.run.seed)
    return Sampler(
        tokenizer=tokenizer,
        source=plugins.load("source", stage.data.source, stage.data.args),
        template=template,
        engine=EndpointEngine(spec, EndpointSettings(**args), template.say),
        sampling=sampling_of(rollout, tokenizer, stage.model.path, text_only=True),
        prompts=(),
    )


# Logits


def _trainer(stage: DistillStage) -> Callable[..., StageTrainer]:
    if stage.method == "sequence":
        return StageTrainer
    teacher = frozen(stage.teacher.path, stage.model, "teacher.path")
    return partial(LogitsTrainer, teacher=teacher)


class LogitsTrainer(StageTrainer):
    """Forward KL divergence from the teacher's to the student's next-token distribution.

    Mean over completion tokens, in nats. A vocabulary that one of the two pads counts up to the
    shorter one.
    """

    def __init__(self, *, teacher: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.teacher = teacher

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As transformers' Trainer calls it."""
        read = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**read, use_cache=False)
        with torch.no_grad():
            wanted = self.teacher(**read, use_cache=False).logits
        shared = min(wanted.shape[-1], outputs.logits.shape[-1])
        labels = inputs["labels"][:, 1:]
        total = _divergence(
            outputs.logits[:, :-1, :shared].float(),
            wanted[:, :-1, :shared].float(),
            labels,
            beta=0.0,  # KL(teacher || student)
            reduction="sum",  # the only one whose divisor every version of TRL lets us choose
        )
        count = (labels != IGNORED).sum().clamp(min=1)
        if num_items_in_batch is not None:
            count = torch.as_tensor(num_items_in_batch, device=total.device)
        loss = total / count
        return (loss, outputs) if return_outputs else loss


def _divergence(*arguments: Any, **settings: Any) -> torch.Tensor:
    """TRL's loss of generalized knowledge distillation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL says at the import that the module may change
        from trl.experimental.gkd import GKDTrainer
    return GKDTrainer.generalized_jsd_loss(*arguments, **settings)
