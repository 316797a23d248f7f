"""The checks of a recipe that need torch: models, tokenizers, templates, lengths.

A stage that starts from `stage:NAME` is checked with a folder that has the tokenizer and the
configuration that NAME will leave: the model NAME starts from, or, for a pretrain stage, a folder
made here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from grpo.config.schema import (
    REFERENCE,
    AnyStage,
    DistillStage,
    PretrainStage,
    Recipe,
    RLStage,
    SFTStage,
)
from grpo.data.source import DemonstrationSource, TaskOrder
from grpo.model import compute_types, pretrained
from grpo.model.families import check_family
from grpo.rollout import LOADING
from grpo.rundir.run_folder import stage_folder
from grpo.stages.inputs import cached
from grpo.stages.origins import with_texts
from grpo.stages.preflight.found import Found, prefix, said
from grpo.stages.preflight.needed import SAMPLED
from grpo.stages.preflight.paths import MODELS, models, reward_models
from grpo.stages.preflight.plugs import Pieces
from grpo.stages.prompting import check_text, has_tokenizer, same_tokens


def check_models(
    recipe: Recipe,
    folder: Path | None,
    done: Collection[str],
    pieces: Mapping[str, Pieces],
    hub: bool,
) -> Found:
    """As `preflight.check`, after what `known` found. Raises RecipeError and DataError."""
    notes: list[str] = []
    heldout: dict[str, int] = {}
    left: dict[str, str] = {}  # stage -> a folder with tokenizer and configuration of its model
    with tempfile.TemporaryDirectory(prefix="grpo-preflight-") as aside:
        for stage in recipe.stages:
            if stage.name not in done:
                here = with_models(stage, left)
                with said(recipe, stage):
                    _models(stage, prefix(recipe, stage), hub)
                    here = with_models(here, left, _cached)
                    _check_device(stage, prefix(recipe, stage))
                    _check_tokens(here)
                    part = pieces[stage.name]
                    found = check_text(here, part.source, part.rows)
                where = f"stage {stage.name}: " if len(recipe.stages) > 1 else ""
                notes += [f"{where}{note}" for note in found.notes]
                heldout |= found.heldout
            with said(recipe, stage):
                # what an unfinished stage has left may be damaged, and is made again
                own = folder if stage.name in done else None
                part = pieces.get(stage.name)
                left[stage.name] = _left(stage, recipe, own, left, part, Path(aside))
    return Found(notes=tuple(notes), heldout=heldout)


def _models(stage: AnyStage, where: str, hub: bool) -> None:
    """Refuse models that are not whole, or of a family that is not trained here.

    Models of the hub are looked up if `hub` is set; their weights are checked when loaded.
    """
    engine = getattr(getattr(stage, "rollout", stage), "engine", "torch")
    learns = isinstance(stage, RLStage | SFTStage | DistillStage)
    for setting, path in models(stage):
        if hub or Path(path).expanduser().exists():
            # engines elsewhere have weights of their own
            needed = engine in LOADING or (learns and setting != "teacher.path")
            pretrained.check_model(path, f"{where}{setting}", weights=needed)
            check_family(pretrained.config(path, f"{where}{setting}"))
    for setting, path in reward_models(stage):
        if hub or Path(path).expanduser().exists():
            pretrained.check_model(path, f"{where}{setting}", pretrained.CLASSIFIER)


def _cached(path: str) -> str:
    """The folder of a model of the hub that was downloaded before; any other path as it is."""
    if Path(path).expanduser().exists() or path.count("/") > 1:
        return path
    return str(cached(path) or path)


def with_models(
    stage: AnyStage, left: Mapping[str, str], known: Callable[[str], str] = str
) -> AnyStage:
    """`stage` with the folders of `left` in place of references to earlier stages.

    known: a function that replaces any other path of a model.
    """

    def place(setting: str, path: str) -> str:
        if setting not in MODELS or not path:
            return path
        return left[path.removeprefix(REFERENCE)] if path.startswith(REFERENCE) else known(path)

    return with_texts(stage, place)


def _left(
    stage: AnyStage,
    recipe: Recipe,
    folder: Path | None,
    left: Mapping[str, str],
    part: Pieces | None,
    aside: Path,
) -> str:
    """The folder that stands in for the model of a stage; "" where none is known."""
    if folder is not None:
        own = stage_folder(recipe, folder, stage.name) / "model"
        if has_tokenizer(str(own)):
            return str(own)
    if isinstance(stage, PretrainStage):
        return _pretrained(stage, part, aside / stage.name, recipe.run.seed)
    if not isinstance(stage, RLStage | SFTStage | DistillStage):
        return ""
    path = cast(Any, with_models(stage, left, _cached)).model.path
    if stage.data.chat_template and has_tokenizer(path):
        return _templated(path, stage.data.chat_template, aside / stage.name)
    return path


def _templated(path: str, chat_template: str, folder: Path) -> str:
    """The same model's tokenizer and configuration with the chat template that a stage gives it."""
    pretrained.tokenizer(path, chat_template=chat_template).save_pretrained(folder)
    pretrained.config(path).save_pretrained(folder)
    if (generation := pretrained.generation_config(path)) is not None:
        generation.save_pretrained(folder)
    return str(folder)


def _pretrained(stage: PretrainStage, part: Pieces | None, folder: Path, seed: int) -> str:
    """Tokenizer and configuration of the model that a pretrain stage will leave.

    Raises DataError where the first of its demonstrations do not fit in that model.
    """
    from grpo.stages.from_scratch import build_model, build_tokenizer, save_tokenizer, words_of
    from grpo.stages.pretrain import count_tokens, demonstration_rows

    source = part.source if part else None
    if not isinstance(source, DemonstrationSource):
        return ""
    tokenizer = build_tokenizer(source.alphabet(), words_of(source))
    with torch.device("meta"):  # no weights
        made = build_model(tokenizer, **stage.model.model_dump(), seed=0)
    order = TaskOrder(source, "train", seed)
    count_tokens(demonstration_rows(source, order, tokenizer, SAMPLED), stage.model.max_position)
    folder.mkdir(parents=True)
    made.config.save_pretrained(folder)
    made.generation_config.save_pretrained(folder)
    save_tokenizer(tokenizer, str(folder))
    return str(folder)


def _check_device(stage: AnyStage, where: str) -> None:
    compute_types.check_kernels()
    compute_types.check(stage, where)
    if isinstance(stage, SFTStage | DistillStage) and not torch.accelerator.is_available():
        compute_types.check_supervised(stage.model.dtype, torch.device("cpu"))


def _check_tokens(stage: AnyStage) -> None:
    """Refuse a teacher or reference of other tokens, whose numbers would not compare."""
    if isinstance(stage, DistillStage) and stage.method == "logits":
        setting, path, model = "teacher.path", stage.teacher.path, stage.model.path
    elif isinstance(stage, SFTStage):
        setting, path, model = "slm.reference", stage.slm.reference, stage.model.path
    else:
        return
    if has_tokenizer(path) and has_tokenizer(model):
        same_tokens(setting, path, pretrained.tokenizer(model), model)
