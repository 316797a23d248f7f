"""The adapter of a stage: `model.lora` of its recipe, or what the adapter that it names says."""

from __future__ import annotations

from grpo.config.schema import AnyStage, DistillStage, Lora, Model, RejectStage
from grpo.errors import RecipeError
from grpo.model.adapter_config import ALL, NO_DORA, matches, read_adapter
from grpo.types import LoraSpec


def adapter_of(model: Model, where: str = "") -> LoraSpec | None:
    """What learner and engines make the adapter of `model` from; None where it has none.

    An adapter that is started from has its own rank, alpha, variants and layers. Raises
    RecipeError, with `where` before the setting, for a folder that is none, for an adapter of
    another model, and for settings that contradict it.
    """
    lora = model.lora
    if not lora.on:
        return None
    if not lora.adapter:
        return LoraSpec(**lora.model_dump())
    setting = f"{where}model.lora.adapter"
    found = read_adapter(lora.adapter, model.path, setting)
    said = f"{setting} = {lora.adapter!r}"
    for name in ("rank", "alpha", "use_rslora", "use_dora"):
        given, own = getattr(lora, name), getattr(found, name)
        if given != Lora.model_fields[name].default and given != own:
            raise RecipeError(
                f"{where}model.lora.{name} = {_yaml(given)} contradicts {said}, where it is "
                f"{_yaml(own)}; leave it out"
            )
    if lora.target_modules != ALL and not _are(lora.target_modules, found.target_modules):
        raise RecipeError(
            f"{where}model.lora.target_modules contradicts {said}, which is on "
            f"{', '.join(sorted({name.rpartition('.')[2] for name in found.target_modules}))}; "
            "leave it out"
        )
    if found.use_dora and model.quantization != "none":
        raise RecipeError(
            f"{said} is a DoRA adapter, which needs the norms of the unpacked base at each step: "
            f"{where}model.quantization = {model.quantization!r}; leave one of them out"
        )
    return found


def check_adapter(stage: AnyStage, where: str) -> None:
    """Refuse an adapter that the stage could not train or sample with. Raises RecipeError."""
    model = getattr(stage, "model", None)
    if not isinstance(model, Model):
        return
    if isinstance(stage, RejectStage) and model.lora.adapter:
        raise RecipeError(
            f"{where}model.lora.adapter = {model.lora.adapter!r}: a reject stage samples from "
            f"whole models; set {where}model.path to one that has the adapter merged in"
        )
    spec = adapter_of(model, where)
    rollout = None if isinstance(stage, DistillStage) else getattr(stage, "rollout", None)
    if spec and spec.use_dora and rollout is not None and rollout.engine == "vllm":
        raise RecipeError(
            f"{where}model.lora.use_dora = true with {where}rollout.engine = 'vllm': {NO_DORA}"
        )


def _are(targets: str | tuple[str, ...], layers: str | tuple[str, ...]) -> bool:
    """Whether `targets` match each of `layers`, and each of them some layer."""
    each = [targets] if isinstance(targets, str) else [[target] for target in targets]
    return all(matches(name, targets) for name in layers) and all(
        any(matches(name, target) for name in layers) for target in each
    )


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
