"""What a stage starts from: the models and rows that its settings name, by their place and hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from grpo.config.schema import REFERENCE, AnyStage, Recipe, artefact, references
from grpo.rundir import provenance
from grpo.rundir.run_folder import stage_folder


def located(stage: AnyStage, recipe: Recipe, folder: Path) -> AnyStage:
    """`stage` with every `stage:NAME` replaced by the folder of that stage's model or rows."""

    def place(text: Any, kind: str) -> Any:
        if not isinstance(text, str) or not text.startswith(REFERENCE):
            return text
        return str(stage_folder(recipe, folder, text.removeprefix(REFERENCE)) / kind)

    def walk(section: BaseModel, where: str = "") -> BaseModel:
        found: dict[str, Any] = {}
        for name in type(section).model_fields:
            value, kind = getattr(section, name), artefact(f"{where}{name}")
            if isinstance(value, BaseModel):
                value = walk(value, f"{where}{name}.")
            elif isinstance(value, dict):
                value = {place(key, kind): item for key, item in value.items()}
            elif isinstance(value, tuple):
                value = tuple(place(item, kind) for item in value)
            found[name] = place(value, kind)
        return section.model_copy(update=found)

    return cast(AnyStage, walk(stage))


def origin(stage: AnyStage, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Hashes of what the stage started from: settings, earlier stages, local models and rows."""
    inputs: dict[str, str] = {}
    for setting, name in references(stage):
        place = stage_folder(recipe, folder, name) / artefact(setting)
        inputs[f"{setting} = stage:{name}"] = str(place)
    for section in ("model", "data", "teacher"):
        path = getattr(getattr(stage, section, None), "path", None)
        if isinstance(path, str) and not path.startswith(REFERENCE):
            inputs[f"{section}.path"] = path
    mixed = getattr(getattr(stage, "data", None), "mix", {})
    inputs |= {f"data.mix.{p}": p for p in mixed if not p.startswith(REFERENCE)}
    slm = getattr(getattr(stage, "slm", None), "reference", "")
    if slm and not slm.startswith(REFERENCE):
        inputs["slm.reference"] = slm
    args = getattr(getattr(stage, "data", None), "args", {})
    inputs |= {f"data.args.{k}": v for k, v in args.items() if isinstance(v, str) and "path" in k}
    return provenance.origin(stage.model_dump(mode="json"), recipe.run.seed, inputs)
