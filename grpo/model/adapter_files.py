"""An adapter on disk, as peft writes and reads it: settings that work are found by trying them."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.errors import LearnerError, RecipeError
from grpo.model.adapter import adapter_layers, adapter_parameters, adapter_settings, peft
from grpo.model.adapter_config import WEIGHTS
from grpo.types import LoraSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

# peft takes these for experts of checkpoints from before transformers 5, in any part of the model
OF_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def skeleton(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration, with zeros for weights that take no memory."""
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        plain = type(model)(copy.deepcopy(model.config))
    for module in plain.modules():
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    return plain


def check_peft(model: PreTrainedModel, spec: LoraSpec) -> None:
    """Find settings with which peft loads the adapter of `model` from files, and keep them with it.

    Each is tried on a skeleton. Raises RecipeError if none works.
    """
    tensors = {name: p.detach().cpu() for name, p in adapter_parameters(model).items()}
    short = _short_names(sorted(adapter_layers(model)), model)
    taken = {name for name in short if name.rpartition(".")[2] in OF_EXPERTS}
    problem = ""
    # A layer of such a name is found by the name of its weight, which nothing else is read into.
    for by_weight in (set[str](), taken):
        settings = adapter_settings(spec) | {
            "fan_in_fan_out": any(layer.fan_in_fan_out for layer in adapter_layers(model).values()),
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "target_modules": sorted(short - by_weight),
        }
        if by_weight:
            settings["target_parameters"] = sorted(f"{name}.weight" for name in by_weight)
        found = _trial(model, tensors, settings)
        if not found:
            named: Any = model
            named.adapter_files = settings
            return
        problem = problem or found
    raise RecipeError(
        f"model.lora: peft could not load an adapter of {type(model).__name__} again ({problem}); "
        "set model.lora.rank=0 to train the weights themselves"
    )


def write_adapter(
    model: PreTrainedModel,
    tensors: dict[str, Tensor],
    spec: LoraSpec,
    base: str | None,
    folder: Path,
) -> None:
    """Write the adapter for `PeftModel.from_pretrained`; `base`: folder or hub id of its base.

    Raises RecipeError as `check_peft`, LearnerError if the file does not hold `tensors`.
    """
    from safetensors.torch import load_file

    if not hasattr(model, "adapter_files"):
        check_peft(model, spec)
    named: Any = model
    _write(tensors, named.adapter_files, base, folder)
    read = load_file(folder / WEIGHTS)
    if wrong := _unlike(tensors, read):
        raise LearnerError(f"{folder / WEIGHTS} holds another {wrong!r} than was trained")


def _write(
    tensors: dict[str, Tensor], settings: dict[str, Any], base: str | None, folder: Path
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    config = peft().LoraConfig(**settings)
    config.base_model_name_or_path = base
    config.save_pretrained(str(folder))


def _trial(model: PreTrainedModel, tensors: dict[str, Tensor], settings: dict[str, Any]) -> str:
    """What peft gets wrong when it loads the adapter's files with `settings`; "" if nothing."""
    import torch

    plain = skeleton(model)
    with (
        tempfile.TemporaryDirectory(prefix="grpo-adapter-") as folder,
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")  # what peft and transformers say to one another
        try:
            _write(tensors, settings, None, Path(folder))
            peft().PeftModel.from_pretrained(plain, folder, torch_device="cpu")
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            return " ".join(str(error).split())[:200]
    read = adapter_parameters(plain)
    if extra := sorted(read.keys() - tensors.keys()):
        return f"it would put one on {extra[0]!r} as well"
    wrong = _unlike(tensors, read)
    return wrong and f"it takes {wrong!r} for another name"


def _unlike(tensors: dict[str, Tensor], read: Mapping[str, Tensor]) -> str:
    """The first name whose tensor in `read` is another, as far as its type holds; "" if none is."""
    for name, tensor in tensors.items():
        found = read.get(name)
        if found is None or not tensor.to(found.dtype).equal(found):
            return name
    return ""


def _short_names(layers: Iterable[str], model: nn.Module) -> set[str]:
    """The layers by the last word of their names, or in full where others have that word too."""
    layers = set(layers)
    inner = tuple(f"{name}." for name in layers)
    others = {
        name.rpartition(".")[2]
        for name, _ in model.named_modules()
        if name not in layers and not name.startswith(inner)
    }
    return {n if (leaf := n.rpartition(".")[2]) in others else leaf for n in layers}
