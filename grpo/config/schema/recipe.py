"""A recipe: a named list of stages, and how one refers to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, cast

from pydantic import BaseModel, Field, model_validator

from grpo.config.schema.common import F, Ray, Run, Section, Title
from grpo.config.schema.distill import DistillStage
from grpo.config.schema.evaluation import EvalStage
from grpo.config.schema.pretrain import PretrainStage
from grpo.config.schema.reject import RejectStage
from grpo.config.schema.rl import RLStage
from grpo.config.schema.sft import SFTStage

AnyStage = PretrainStage | SFTStage | RLStage | RejectStage | DistillStage | EvalStage
STAGES: dict[str, type[AnyStage]] = {
    "pretrain": PretrainStage,
    "sft": SFTStage,
    "rl": RLStage,
    "reject": RejectStage,
    "distill": DistillStage,
    "eval": EvalStage,
}
Stage = Annotated[AnyStage, Field(discriminator="kind")]
REFERENCE = "stage:"
# Which kinds leave a folder `model`, and which a folder `data`.
LEAVES = {"model": ("pretrain", "sft", "rl", "distill"), "data": ("reject", "distill")}


def artefact(setting: str) -> str:
    """The folder, inside a stage's, that a `stage:NAME` in `setting` means: `model` or `data`."""
    return "data" if setting in ("data.path", "data.mix") else "model"


def references(stage: BaseModel, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted setting, text after `stage:`) of every reference to another stage."""
    for name in type(stage).model_fields:
        value: Any = getattr(stage, name)
        place = f"{where}{name}"
        if isinstance(value, BaseModel):
            yield from references(value, f"{place}.")
        # A dict is data.mix (paths are its keys) or arguments of a plug-in.
        values = cast(Iterable[Any], value if isinstance(value, tuple | dict) else (value,))
        for item in values:
            if isinstance(item, str) and item.startswith(REFERENCE):
                yield place, item.removeprefix(REFERENCE)


class Recipe(Section):
    """A named list of stages, run in order."""

    name: Title
    run: Run = Run()
    ray: Ray = Ray()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = F(..., "what is run, in order")

    @property
    def run_dir(self) -> str:
        """Where the run is written: run.dir, or runs/<name>."""
        return self.run.dir or f"runs/{self.name}"

    @model_validator(mode="after")
    def _stages_connect(self) -> Recipe:
        earlier: dict[str, str] = {}
        for stage in self.stages:
            if stage.name in earlier or stage.name in {"run", "ray", "name"}:
                raise ValueError(
                    f"stage name {stage.name!r} is taken; give each stage its own name"
                )
            for setting, name in references(stage):
                kinds = LEAVES[artefact(setting)]
                if earlier.get(name) not in kinds:
                    names = [f"stage:{n}" for n, kind in earlier.items() if kind in kinds]
                    what = "rows" if artefact(setting) == "data" else "a model"
                    raise ValueError(
                        f"{setting} = 'stage:{name}' of stage {stage.name!r} is not an earlier "
                        f"stage that leaves {what}; valid: {', '.join(names) or 'none'}"
                    )
            earlier[stage.name] = stage.kind
        return self
