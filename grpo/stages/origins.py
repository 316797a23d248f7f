"""What a stage starts from: where the models and rows of its settings are, and their hashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from grpo.config.schema import REFERENCE, AnyStage, Recipe, artefact, references
from grpo.rundir import provenance
from grpo.rundir.run_folder import stage_folder

S = TypeVar("S", bound=BaseModel)


def located(stage: AnyStage, recipe: Recipe, folder: Path) -> AnyStage:
    """`stage` with every `stage:NAME` replaced by the folder of that stage's model or rows."""

    def place(setting: str, text: str) -> str:
        if not text.startswith(REFERENCE):
            return text
        return str(stage_folder(recipe, folder, text.removeprefix(REFERENCE)) / artefact(setting))

    return with_texts(stage, place)


def with_texts(section: S, change: Callable[[str, str], str], where: str = "") -> S:
    """`section` with `change(dotted setting, text)` for each text of its settings.

    These are the values that are a text or a tuple with texts, and the keys of dicts.
    """

    def changed(setting: str, value: Any) -> Any:
        return change(setting, value) if isinstance(value, str) else value

    found: dict[str, Any] = {}
    for name in type(section).model_fields:
        value, setting = getattr(section, name), f"{where}{name}"
        if isinstance(value, BaseModel):
            value = with_texts(value, change, f"{setting}.")
        elif isinstance(value, dict):
            value = {changed(setting, key): item for key, item in value.items()}
        elif isinstance(value, tuple):
            value = tuple(changed(setting, item) for item in value)
        found[name] = changed(setting, value)
    return section.model_copy(update=found)


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
    if adapter := getattr(getattr(getattr(stage, "model", None), "lora", None), "adapter", ""):
        inputs["model.lora.adapter"] = adapter
    mixed = getattr(getattr(stage, "data", None), "mix", {})
    inputs |= {f"data.mix.{p}": p for p in mixed if not p.startswith(REFERENCE)}
    slm = getattr(getattr(stage, "slm", None), "reference", "")
    if slm and not slm.startswith(REFERENCE):
        inputs["slm.reference"] = slm
    args = getattr(getattr(stage, "data", None), "args", {})
    inputs |= {f"data.args.{k}": v for k, v in args.items() if isinstance(v, str) and "path" in k}
    return provenance.origin(stage.model_dump(mode="json"), recipe.run.seed, inputs)
