"""`grpo.generate`: completions of a model for prompts, as training would sample them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grpo.commands.api import given as objects_of
from grpo.commands.api.calling import called
from grpo.commands.api.calls import stage_of
from grpo.commands.api.given import Given
from grpo.commands.api.run import Run
from grpo.commands.api.settings import Tree
from grpo.commands.process import prepare_process, restored
from grpo.config import config
from grpo.config.schema import Recipe, RejectStage, Rollout
from grpo.config.schema.recipe import LEAVES
from grpo.data.in_memory import rows_given
from grpo.errors import DataError, RecipeError
from grpo.model import pretrained
from grpo.model.compute_types import chosen
from grpo.outside.code import objects
from grpo.rollout.collect import collect
from grpo.rollout.settings import TorchSettings
from grpo.stages.wiring import Sampler, build_sampler
from grpo.types import NoiseSplit, Prompt, Request, Version

if TYPE_CHECKING:
    from grpo.commands.api.frames import Rows


@called
def generate(
    *,
    model: Any,
    prompts: Any,
    n: int = 1,
    greedy: bool = False,
    tokenizer: Any = None,
    **settings: Any,
) -> Rows:
    """Sample `n` completions of each prompt; a data frame with a row each, in the order asked.

        grpo.generate(model=run, prompts=["0110="], n=4, temperature=0.7, seed=1)

    model, tokenizer: as in `grpo.train`. A model in memory is not saved, and samples with the
    weights that it has now; a run makes prompts and samples as in its training, where settings say
    nothing else. prompts: texts, lists of messages, or rows with a `prompt`; one text or
    one list of messages stands for itself. greedy: the likeliest token every time, whatever the
    temperature; then n is 1. settings: those of a recipe's rollout and data sections, and `seed`:
    one seed gives one result. Columns: prompt (as the model read it), completion, logprob (natural
    logarithm, summed over its tokens), tokens, finish ("stop" or "length"), and the other columns
    of the rows. Raises GrpoError.
    """
    if "rewards" in settings:
        raise RecipeError("grpo.generate takes no rewards; grpo.evaluate scores what it samples")
    tree = _as_trained(model) if isinstance(model, Run) else {}
    asked = {"model": model, "prompts": prompts, "tokenizer": tokenizer}
    return _generated(tree, n, greedy, asked, settings)


def _as_trained(run: Run) -> Tree:
    """How a run made prompts and sampled, as a stage to start from; {} where it left no model."""
    leaving = [stage for stage in run.recipe.stages if stage.kind in LEAVES["model"]]
    if not leaving:
        return {}
    stage = leaving[-1]
    data, rollout = getattr(stage, "data", None), getattr(stage, "rollout", None)
    names = ("template", "template_args", "chat_template", "max_prompt_length")
    tree: Tree = {"kind": "reject", "name": "reject"}
    tree["data"] = {name: found for name in names if (found := getattr(data, name, None))}
    if isinstance(rollout, Rollout):
        tree["rollout"] = rollout.model_dump(mode="json")
        tree["rollout"] |= {"max_completion_length": rollout.longest_completion, "backend": "local"}
    return tree


def _generated(
    tree: Tree, n: int, greedy: bool, asked: Mapping[str, Any], settings: Mapping[str, Any]
) -> Rows:
    """`generate`. tree: a stage to start from. asked: model, prompts and tokenizer."""
    if not isinstance(cast(Any, n), int) or n < 1 or (greedy and n > 1):
        raise RecipeError(
            f"n = {n!r}: valid are 1, 2, 3, …, and with greedy=True only 1, because the likeliest "
            "completion is always the same"
        )
    call: Tree = {"rewards": ["random"], "model": asked["model"], **settings}
    call |= {"dataset": _rows(asked["prompts"]), "tokenizer": asked.get("tokenizer")}
    given = Given()
    with tempfile.TemporaryDirectory(prefix="grpo-generate-") as name:
        folder = Path(name)
        # A stage that samples, whose rewards and filter nobody asks.
        tree = stage_of(given, folder, "reject", call, tree, [])
        tree["data"]["args"]["heldout_fraction"] = 0.0  # every prompt is asked
        head: Tree = {key: tree.pop(key) for key in ("run", "ray") if key in tree}
        objects_of.make_places(given, folder)
        with objects.given(given.objects), restored():
            recipe = config.from_dict({"name": "generate", **head, "stages": [tree]})
            prepare_process(recipe.run.threads)
            sampler = _sampler(recipe, given, folder)
            with closing(sampler.engine):
                return _sampled(sampler, n, greedy, recipe.run.seed)


def _rows(prompts: Any) -> Any:
    """Prompts as rows of a data set."""
    if isinstance(prompts, str):
        return [{"prompt": prompts}]
    if not isinstance(prompts, list | tuple):
        return [row for _, row in rows_given(prompts, "prompts")]  # a data set, a generator
    listed = list(cast("Sequence[Any]", prompts))
    if not listed:
        raise DataError("prompts = []: give at least one, say prompts=['2 + 2 =']")
    if all(isinstance(one, Mapping) and "role" in one for one in listed):
        return [{"prompt": listed}]  # the messages of one conversation
    for place, one in enumerate(listed):
        if not isinstance(one, str | list | Mapping):
            raise DataError(
                f"prompts[{place}] = {one!r:.60} is of type {type(one).__name__}; valid: a text, a "
                "list of messages, or a dict with a 'prompt'"
            )
    return [{"prompt": one} if isinstance(one, str | list) else one for one in listed]


def _sampler(recipe: Recipe, given: Given, folder: Path) -> Sampler:
    """The sampler of the stage. The engine reads a model in memory where it lies, if it can."""
    stage = recipe.stages[0]
    assert isinstance(stage, RejectStage)
    sections: dict[str, Any] = {"model": stage.model, "data": stage.data, "rollout": stage.rollout}
    here = (stage.rollout.engine, stage.rollout.backend) == ("torch", "local")
    as_it_is = stage.model.quantization == "none" and not stage.model.lora.on
    if not (given.models and here and as_it_is):
        objects_of.save_models(given, folder)
        return build_sampler(**sections, recipe=recipe)
    ((name, (model, tokenizer)),) = given.models.items()
    place = folder / objects_of.FOLDER / name
    model.config.save_pretrained(place)
    if model.can_generate():
        model.generation_config.save_pretrained(place)
    tokenizer.save_pretrained(place)
    from grpo.rollout.embedded.torch_engine import TorchEngine

    args = TorchSettings(**stage.rollout.engine_args)
    engine = TorchEngine(
        model,
        pretrained.tokenizer(str(place)),
        version=Version(step=0, hash="as loaded"),
        max_rows=args.max_rows,
        dtype=chosen(stage.rollout.dtype or stage.model.dtype),
        share_storage=True,
        packed=True,
        compile=args.compile,
    )
    return build_sampler(**sections, recipe=recipe, engine=engine)


def _sampled(sampler: Sampler, n: int, greedy: bool, seed: int) -> Rows:
    from grpo.commands.api.frames import frame_of

    source, sampling = sampler.source, sampler.sampling
    if greedy:
        sampling = replace(sampling, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)
    tasks = [source.task("train", i) for i in range(source.size("train") or 0)]
    asked: list[Prompt] = []
    for task in tasks:
        prompt = sampler.template.render(task)
        if prompt is None:
            raise DataError(
                f"{task.place}: the prompt is longer than {sampler.template.limit()[1]}; raise "
                "data.max_prompt_length"
            )
        asked.append(prompt)
    requests = [
        Request(
            uid=str(place),
            ids=prompt.ids,
            n=n,
            sampling=sampling,
            key=NoiseSplit.HELDOUT.key(seed, place, 0),
        )
        for place, prompt in enumerate(asked)
    ]
    answers = dict(collect(sampler.engine, requests, text=True))
    return frame_of(
        [
            {
                "prompt": asked[place].text,
                "completion": asked[place].prefill + one.text,
                "logprob": float(one.logprobs.sum()),
                "tokens": len(one),
                "finish": one.finish,
                **({} if task.answer is None else {"answer": task.answer}),
                **task.columns,
            }
            for place, task in enumerate(tasks)
            for one in answers[str(place)]
        ]
    )
