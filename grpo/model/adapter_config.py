"""An adapter's settings as peft writes them: an `adapter_config.json`, or a `LoraConfig` object.

`FIELDS` has every field of peft's `LoraConfig`: whether a recipe can say it, whether it is decided
here, or why it has to be at its default. Nothing here imports torch or peft.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from grpo.errors import RecipeError
from grpo.types import LoraSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
ALL = "all-linear"
NO_DORA = "vLLM serves no DoRA; set it to false, or sample with rollout.engine=torch, which does"
_MOST = 1 << 27  # bytes of a header of safetensors

HONORED, DECIDED = "honored", "decided here"
_ONE_SCALE = "every layer has one rank and one alpha here"
_INIT = "A is random and B zero at first, so that the policy starts as its base"
_NAMES = "name the layers in target_modules, by a regex if need be"
_PAIRS = "only the pairs A and B on linear layers, and DoRA's norms, are trained and sent"
_OTHER = "this variant of LoRA is not here; valid: plain LoRA, use_rslora, use_dora"
# field of peft.LoraConfig -> HONORED, DECIDED, or why no other value than the default is taken
FIELDS: dict[str, str] = {
    "r": HONORED,
    "lora_alpha": HONORED,
    "target_modules": HONORED,
    "use_rslora": HONORED,
    "use_dora": HONORED,
    "auto_mapping": DECIDED,
    "base_model_name_or_path": DECIDED,
    "fan_in_fan_out": DECIDED,  # by the layers' types
    "inference_mode": DECIDED,
    "peft_version": DECIDED,
    "revision": DECIDED,
    "runtime_config": DECIDED,  # moves tensors, and changes no number
    "lora_dropout": "there is no dropout here, as the policy that learns would not be the one that "
    "sampled; set it to 0",
    "task_type": "a causal language model is trained; valid: CAUSAL_LM",
    "peft_type": "only LORA adapters are trained",
    "bias": "biases stay as they are: an engine that has the base could not get them",
    "modules_to_save": "other weights stay as they are: an engine that has the base could not get "
    "them",
    "trainable_token_indices": "embeddings stay as they are: an engine that has the base could not "
    "get them",
    "exclude_modules": _NAMES,
    "layers_to_transform": _NAMES,
    "layers_pattern": _NAMES,
    "rank_pattern": _ONE_SCALE,
    "alpha_pattern": _ONE_SCALE,
    "init_lora_weights": _INIT,
    "loftq_config": _INIT,
    "eva_config": _INIT,
    "corda_config": _INIT,
    "lora_ga_config": _INIT,
    "target_parameters": _PAIRS,
    "lora_bias": _PAIRS,
    "ensure_weight_tying": _PAIRS,
    "layer_replication": "the layers of the base are used once each",
    "megatron_config": "the model is one of transformers",
    "megatron_core": "the model is one of transformers",
    "alora_invocation_tokens": _OTHER,
    "arrow_config": _OTHER,
    "kasa_config": _OTHER,
    "monteclora_config": _OTHER,
    "qalora_group_size": _OTHER,
    "use_bdlora": _OTHER,
    "use_qalora": _OTHER,
    "velora_config": _OTHER,
}
# what else a field may be; in the file of an adapter that is begun already, also IN_FILES
ALSO: dict[str, tuple[object, ...]] = {
    "task_type": ("CAUSAL_LM",),
    "peft_type": ("LORA",),
}
IN_FILES: dict[str, tuple[object, ...]] = {"init_lora_weights": (False, "gaussian")}
_PAST = ("lora_dropout", "target_parameters")  # of a file: how it was trained, how it is found


def lora_of(peft_config: Any, model_type: str | None = None) -> dict[str, Any]:
    """The mapping `model.lora` of a recipe that says what a `peft.LoraConfig` object says.

    model_type: of the model's configuration (`llama`). peft has layers of its own for each, which
    an object without target_modules stands for. `all-linear` is ours: without routers. Raises
    RecipeError, which names the field, for anything that would not be honored.
    """
    defaults = {field.name: _default(field) for field in dataclasses.fields(peft_config)}
    values = {name: _plain(getattr(peft_config, name)) for name in defaults}
    _check(values, defaults, "peft_config.")
    targets: Any = values["target_modules"]
    if targets is None:
        targets = _of_type(model_type)
    return {
        "rank": values["r"],
        "alpha": values["lora_alpha"],
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "use_rslora": values["use_rslora"],
        "use_dora": values["use_dora"],
    }


def read_adapter(folder: str, base: str, setting: str = "model.lora.adapter") -> LoraSpec:
    """The adapter in `folder`, which belongs to the model at `base`, with its layers by name.

    Raises RecipeError, beginning with `setting`, for what is no LoRA adapter of a causal language
    model, for fields that are not honored, and for another base.
    """
    place, said = Path(folder).expanduser(), f"{setting} = {folder!r}"
    if not (place / CONFIG).is_file():
        raise RecipeError(
            f"{said} has no {CONFIG}; name the folder that peft's save_pretrained wrote, or "
            "model/adapter of a run"
        )
    try:
        values: Any = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        rank, alpha = values["r"], values["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(f"{said}: {CONFIG} is no configuration of a LoRA adapter") from error
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float) and alpha > 0):
        raise RecipeError(f"{said}: {CONFIG} has r = {rank!r} and lora_alpha = {alpha!r}")
    _check(values, _defaults_in_files(), f"{said}: ", IN_FILES)
    recorded = values.get("base_model_name_or_path")
    if recorded and not _same(recorded, base):
        raise RecipeError(
            f"{said} is an adapter of {recorded!r}, and model.path = {base!r}; set model.path to "
            f"that model, or, if they are the same, base_model_name_or_path in {CONFIG} to this one"
        )
    return LoraSpec(
        rank=rank,
        alpha=alpha,
        target_modules=_layers_in(place / WEIGHTS, rank, said),
        use_rslora=bool(values.get("use_rslora")),
        use_dora=bool(values.get("use_dora")),
        adapter=folder,
    )


def matches(name: str, target: str | Collection[str]) -> bool:
    """Whether peft would put an adapter on the layer `name`: a regex, or last parts of names."""
    if isinstance(target, str):
        return re.fullmatch(target, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in target)


def _check(
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    where: str,
    also: Mapping[str, tuple[object, ...]] | None = None,
) -> None:
    """Refuse the first field that is not honored and not at its default. Raises RecipeError."""
    for name, value in values.items():
        why = FIELDS.get(name, "this field of peft is not known here")
        if why in (HONORED, DECIDED) or (also is not None and name in _PAST):
            continue
        taken = (defaults.get(name), None, *ALSO.get(name, ()), *(also or {}).get(name, ()))
        if not any(type(value) is type(other) and value == other for other in taken):
            raise RecipeError(f"{where}{name} = {value!r} is not honored: {why}")


def _plain(value: Any) -> Any:
    """Enumerations by their values, sets in order."""
    if isinstance(value, str):
        return str(getattr(value, "value", value))
    return sorted(value) if isinstance(value, set | frozenset) else value


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _defaults_in_files() -> dict[str, Any]:
    """What a file has where nothing was set: null, or one of these."""
    return {name: False for name in FIELDS if name.startswith(("use_", "ensure_"))} | {
        "bias": "none",
        "init_lora_weights": True,
        "lora_bias": False,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        **{name: {} for name in ("rank_pattern", "alpha_pattern", "loftq_config")},
    }


def _of_type(model_type: str | None) -> list[str]:
    """peft's own layers of a model. Raises RecipeError where it has none."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as OWN

    if model_type not in OWN:
        of = f" of {model_type!r}" if model_type else ""
        raise RecipeError(
            f"peft_config.target_modules is not set, and peft has none of its own for a model{of}; "
            "set it to all-linear, a regex or a list of names"
        )
    return OWN[model_type]


def _same(recorded: str, base: str) -> bool:
    """Whether two names are of one model: one text, or one folder."""
    if recorded == base:
        return True
    one, other = Path(recorded).expanduser(), Path(base).expanduser()
    return one.exists() and other.exists() and one.samefile(other)


def _layers_in(file: Path, rank: int, said: str) -> tuple[str, ...]:
    """The layers of an adapter, in order, from the header of its file. Raises RecipeError."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(min(length, _MOST)))
        shapes = {name: entry["shape"] for name, entry in header.items() if name[:2] != "__"}
    except OSError as error:
        raise RecipeError(f"{said} has no {WEIGHTS} that can be read; save it anew") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecipeError(f"{said}: {WEIGHTS} is cut short or damaged; copy it anew") from error
    layers: dict[str, None] = {}
    for name, shape in shapes.items():
        layer, _, part = name.removeprefix(PREFIX).partition(".lora_")
        if part not in ("A.weight", "B.weight", "magnitude_vector"):
            raise RecipeError(f"{said} holds {name!r}: {_PAIRS}")
        layers[layer] = None
        if part == "A.weight" and shape[0] != rank:
            raise RecipeError(f"{said}: {name} has rank {shape[0]}, and r = {rank} in {CONFIG}")
    if not layers:
        raise RecipeError(f"{said}: {WEIGHTS} is empty")
    return tuple(layers)
